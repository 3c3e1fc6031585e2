"""Whole images on shared feature maps: every step runs on the whole map, and its result is kept where it is wanted.

This is the plain form, the oracle of the other backends. A cell that has left saves no work here. Only a stage that no
cell needs is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ape_kernels.backends.protocol import Depths, Picture
from ape_kernels.backends.torch.interpolate import interpolate
from ape_kernels.backends.torch.interpreter import Row, Sections, run_steps
from ape_kernels.program import INPUT
from ape_kernels.sharing import Share
from ape_kernels.table import NO_BUFFER, Column, Opcode, PackedProgram


def run_image(packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture) -> None:
    if depths.exit_at is not None and bool((depths.exit_at < 0).all()):
        interpolate_cells(image, depths, picture)
        return
    # the reach and the carry of a row follow its columns
    sections = Sections.of(torch.cat([packed.table, sharing], dim=1))
    buffers = {INPUT: image}
    run_steps(sections.head, buffers, packed.weights)
    for number, stage in enumerate(sections.stages):
        if depths.exit_at is None:
            run_steps(stage.steps, buffers, packed.weights)
        elif (active := active_pixels(depths, number, image)).any():
            _run_where(stage.steps, active, buffers, packed.weights)
    upscaled = run_steps(sections.tail, buffers, packed.weights)
    picture.out.copy_(upscaled)
    interpolate_cells(image, depths, picture)


def interpolate_cells(image: Tensor, depths: Depths, picture: Picture) -> None:
    """Put the pixels of cells at -1 into the picture. image: ``[B, C, H, W]``, folded, as `run_image` takes it."""
    if depths.exit_at is None:
        return
    factor = picture.out.shape[2] // image.shape[2]
    runs = _enlarged(cell_pixels(depths.exit_at >= 0, depths.cell, image), factor)
    interpolated = interpolate(picture.colours, picture.scale)
    picture.out.copy_(torch.where(runs, picture.out, interpolated))


def image_bytes(packed: PackedProgram) -> int:
    buffers = [row for row in packed.table.tolist() if row[Column.OPCODE] == Opcode.BUFFER]
    return 4 * sum(row[Column.IN_CHANNELS] * row[Column.RESOLUTION] ** 2 for row in buffers)


def cell_pixels(cells: Tensor, cell: int, image: Tensor) -> Tensor:
    """Cells ``[B, R, K]`` to pixels of the image, ``[B, 1, H, W]``."""
    return _enlarged(cells[:, None], cell)[:, :, : image.shape[2], : image.shape[3]]


def active_pixels(depths: Depths, stage: int, image: Tensor) -> Tensor:
    """Pixels ``[B, 1, H, W]``, bool, whose features stage `stage` renews: active cells, in stage 0 with their ring."""
    assert depths.exit_at is not None
    active = cell_pixels(depths.exit_at >= stage, depths.cell, image)
    return _dilated(active, depths.ring) if stage == 0 else active


def _run_where(steps: list[Row], active: Tensor, buffers: dict[int, Tensor], weights: Tensor) -> None:
    """Run a stage: each step `reach` pixels around what is active. Elsewhere its destination is what it carries."""
    sources: list[Row] = []
    for row in steps:
        sources.append(row)
        if row[Column.OPCODE] == Opcode.SOURCE:
            continue
        reach, carry = row[len(Column) + Share.REACH], row[len(Column) + Share.CARRY]
        carried = buffers.get(carry)
        run_steps(sources, buffers, weights)
        made, sources = buffers[row[Column.DST]], []
        where = _dilated(_enlarged(active, made.shape[2] // active.shape[2]), reach)
        if carry == NO_BUFFER:
            buffers[row[Column.DST]] = made * where
        elif carried is not None:
            buffers[row[Column.DST]] = torch.where(where, made, carried)


def _enlarged(mask: Tensor, factor: int) -> Tensor:
    return mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _dilated(mask: Tensor, radius: int) -> Tensor:
    return mask if radius == 0 else max_pool2d(mask.float(), 2 * radius + 1, 1, radius) > 0
