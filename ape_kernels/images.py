"""Runs packed programs on whole images: patches share one feature map, so the picture is the model's own.

How far each cell of the image runs is an input (`Depths`). Images that would take too much memory run in bands of rows,
each with as many rows around it as its pixels depend on: the picture is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends.protocol import Depths, Picture
from ape_kernels.folding import fold_pixels, reflect_to_multiple
from ape_kernels.packed import Packed
from ape_kernels.sharing import receptive_field, why_not_shared
from ape_kernels.table import PackedProgram

RING = 4  # pixels around the cells that run which go through the first stage with them, if no fit says otherwise
BAND_BYTES = {"cpu": 1 << 30, "cuda": 1 << 33}  # of feature maps that are held at once


class Tones(NamedTuple):
    """What is added to the colours of cells that are interpolated, see `backends.torch.interpolate`."""

    table: Tensor | None = None
    value_range: float = 1.0


def run_image(image: Tensor, packed: Packed, depths: Depths, tones: Tones) -> Tensor:
    """Pictures float32 ``[B, out_channels, s * H, s * W]`` of images float32 ``[B, C, H, W]``.

    depths: cell and ring in pixels of the image; the cell a multiple of the program's fold.
    Raises ValueError for a program that cannot run so, and for tensors of another dtype, shape or device.
    """
    if packed.sharing is None:
        raise ValueError(f"program: expected steps that read a few pixels around, got {why_not_shared(packed.program)}")
    return torch.ops.ape_kernels.run_image(
        image,
        packed.table,
        packed.weights,
        packed.sharing,
        *depths,
        *tones,
        packed.upscale,
        packed.out_channels,
        packed.program.fold,
        packed.backend,
    )


def cells_of(height: int, width: int, cell: int) -> tuple[int, int]:
    """Rows and columns of cells of an image; the last ones are cut off by its edge."""
    return -(-height // cell), -(-width // cell)


def _run_image(
    image: Tensor,
    table: Tensor,
    weights: Tensor,
    sharing: Tensor,
    exit_at: Tensor | None,
    cell: int,
    ring: int,
    tones: Tensor | None,
    value_range: float,
    upscale: int,
    out_channels: int,
    fold: int,
    backend: str,
) -> Tensor:
    """The operation, as torch sees it; arguments as in `run_image`, `Depths`, `Tones` and `PatchProgram`."""
    _check(image, weights, exit_at, cell, fold)
    batch, _, height, width = image.shape
    scale = upscale // fold
    packed = PackedProgram(table, weights)
    image = reflect_to_multiple(image, fold).contiguous()
    folded = fold_pixels(image, fold).contiguous()
    exit_at, tones = (None if values is None else values.contiguous() for values in (exit_at, tones))
    out = image.new_empty(batch, out_channels, *(side * scale for side in image.shape[2:]))
    for part in _bands(packed, folded, cell // fold, backend):
        rows = slice(part.first * fold, part.stop * fold)
        some = image if part.whole else image[:, :, rows].contiguous()
        made = out if part.whole else out.new_empty(batch, out_channels, some.shape[2] * scale, out.shape[3])
        at = exit_at
        if exit_at is not None and not part.whole:
            at = exit_at[:, part.first * fold // cell : -(-part.stop * fold // cell)].contiguous()
        depths = Depths(at, cell // fold, -(-ring // fold))
        picture = Picture(made, some, scale, tones, value_range)
        ops.run_image(packed, sharing, folded[:, :, part.first : part.stop].contiguous(), depths, picture, backend)
        if not part.whole:
            begin, end = part.begin * upscale, part.end * upscale
            out[:, :, begin:end] = made[:, :, begin - part.first * upscale : end - part.first * upscale]
    cut = out[:, :, : height * scale, : width * scale]
    return cut if cut.shape == out.shape else cut.contiguous()


def _fake_run_image(image: Tensor, *others: Any) -> Tensor:
    *_, upscale, out_channels, fold, _backend = others
    scale = upscale // fold
    return image.new_empty(image.shape[0], out_channels, image.shape[2] * scale, image.shape[3] * scale)


def _check(image: Tensor, weights: Tensor, exit_at: Tensor | None, cell: int, fold: int) -> None:
    if image.ndim != 4 or image.dtype != torch.float32:
        raise ValueError(f"image: expected float32 [B, C, H, W], got {image.dtype} {list(image.shape)}")
    if weights.device != image.device:
        raise ValueError(f"weights: expected on {image.device}, packed for it, got {weights.device}")
    if cell < 1 or cell % fold:
        raise ValueError(f"cell: expected a multiple of {fold}, got {cell}")
    batch, _, height, width = image.shape
    shape = (batch, *cells_of(height, width, cell))
    if exit_at is None:
        return
    if exit_at.dtype != torch.int64 or tuple(exit_at.shape) != shape or exit_at.device != image.device:
        got = f"{exit_at.dtype} {list(exit_at.shape)} on {exit_at.device}"
        raise ValueError(f"exit_at: expected int64 {list(shape)} on {image.device}, got {got}")


class _Band(NamedTuple):
    """Rows of the folded image: `begin` to `end` are wanted, `first` to `stop` are run, `whole` if that is all."""

    first: int
    stop: int
    begin: int
    end: int
    whole: bool


def _bands(packed: PackedProgram, image: Tensor, cell: int, backend: str) -> Iterator[_Band]:
    """The image in bands of whole cells, as few as memory allows; fixed by its size and the program alone."""
    batch, _, height, width = image.shape
    row_bytes = ops.image_bytes(packed, backend) * batch * width
    rows = height if row_bytes == 0 else max(1, BAND_BYTES.get(image.device.type, 1 << 33) // max(row_bytes, 1))
    if rows >= height:
        yield _Band(0, height, 0, height, True)
        return
    margin = receptive_field(packed.table) + cell  # a ring is no wider than a cell
    step = max(cell, (rows - 2 * margin) // cell * cell)
    for begin in range(0, height, step):
        end = min(begin + step, height)
        first = max(0, begin - margin) // cell * cell
        yield _Band(first, min(height, end + margin), begin, end, False)


ops.register("run_image", _run_image, _fake_run_image)
