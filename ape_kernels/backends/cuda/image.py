"""Whole images on shared feature maps: one launch per row or fused pair (csrc/cuda/window.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ape_kernels.backends.cuda import launch
from ape_kernels.backends.cuda.layout import UNIT
from ape_kernels.backends.native_calls import address, program_arguments
from ape_kernels.backends.protocol import Depths, Picture
from ape_kernels.backends.torch.image import interpolate_cells
from ape_kernels.program import PatchProgram
from ape_kernels.table import ELEMENT_TYPES, Column, Opcode, PackedProgram

MOST_BUFFERS = 16  # kMostBuffers in csrc/cuda/args.h
CELL = 8  # channels of a pixel that lie together


def why_no_windows(program: PatchProgram) -> str | None:
    """None if a program that can run on shared maps runs here, else the reason."""
    if len(program.buffers) > MOST_BUFFERS:
        return f"runs images with up to {MOST_BUFFERS} feature maps, not {len(program.buffers)}"
    return None


def run_image(packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture) -> None:
    if not image.numel():
        return
    batch, _, height, width = image.shape
    exit_at = depths.exit_at
    sharing = sharing.contiguous()
    with torch.cuda.device_of(image):
        maps = empty_maps(packed, image)
        _load(image, maps)
        launch.launcher().cuda_run_image(
            **program_arguments(packed),
            element=ELEMENT_TYPES[packed.weights.dtype],
            sharing=sharing.data_ptr(),
            maps=maps.data_ptr(),
            exit_at=address(exit_at),
            output=picture.out.data_ptr(),
            images=batch,
            height=height,
            width=width,
            cell=depths.cell,
            cell_rows=1 if exit_at is None else exit_at.shape[1],
            cell_columns=1 if exit_at is None else exit_at.shape[2],
            ring=depths.ring,
            stream=torch.cuda.current_stream().cuda_stream if image.is_cuda else 0,
        )
        interpolate_cells(image, depths, picture)


def image_bytes(packed: PackedProgram) -> int:
    return _elements(packed) * packed.weights.element_size()


def empty_maps(packed: PackedProgram, image: Tensor) -> Tensor:
    """Memory for the maps, one row per image. Nothing reads it before it is written."""
    batch, _, height, width = image.shape
    return packed.weights.new_empty(batch, _elements(packed) * height * width)


def _elements(packed: PackedProgram) -> int:
    """Elements that the maps of an image take per pixel."""
    maps = [row for row in packed.table.tolist() if row[Column.OPCODE] == Opcode.BUFFER]
    return sum(
        (row[Column.IN_CHANNELS] + -row[Column.IN_CHANNELS] % UNIT) * row[Column.RESOLUTION] ** 2 for row in maps
    )


def _load(image: Tensor, maps: Tensor) -> None:
    """Images float32 ``[B, C, H, W]`` to the first map of each, ``[C / 8][H * W][8]``, C padded with zeros."""
    batch, channels, height, width = image.shape
    groups = (channels + -channels % UNIT) // CELL
    first = maps[:, : groups * CELL * height * width].view(batch, groups, height * width, CELL)
    first.zero_()
    for group in range(groups):
        part = image[:, group * CELL : (group + 1) * CELL].flatten(2)
        first[:, group, :, : part.shape[1]] = part.transpose(1, 2)
