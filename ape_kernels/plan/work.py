"""What a plan costs, in FLOPs: head, stages, tail, rings and interpolation, but no halo that is computed twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ape_kernels.program import PatchProgram


@dataclass(frozen=True)
class Work:
    """FLOPs of each low-resolution pixel, as integers.

    candidates: interpolation, then leaving after each stage, the last being full depth. ring: of a pixel beside active
    cells that goes through head and first stage with them.
    """

    candidates: tuple[int, ...]
    ring: int

    @classmethod
    def of(cls, program: PatchProgram, tones: bool = False) -> Work:
        """The work of a program, with or without a table of tones."""
        scale, per_pixel = program.scale, program.fold**2
        exits = [program.flops_to_stage(stage) // per_pixel for stage in range(len(program.stages))]
        ring = (program.head_flops + program.body_flops_to_stage(0)) // per_pixel
        # bicubic: four taps across, then four down; tones: seven linear interpolations of three channels
        interpolation = program.out_channels * 8 * (scale + scale**2) + 70 * tones
        return cls((interpolation, *exits), ring)


def areas(height: int, width: int, cell: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights int64 ``[R, 1]`` and widths ``[1, K]`` of the cells of an image, in pixels."""
    row, column = (torch.arange(0, side, cell, device=device) for side in (height, width))
    return (height - row).clamp(max=cell)[:, None], (width - column).clamp(max=cell)[None]


def ring_pixels(active: Tensor, heights: Tensor, widths: Tensor, ring: int) -> Tensor:
    """Pixels of each cell that is not active but lie within `ring` pixels of one that is: int64 ``[B, R, K]``.

    active: bool ``[B, R, K]``. heights, widths: as `areas` gives them. ring: at most half a cell.
    """
    around = torch.nn.functional.pad(active, (1, 1, 1, 1))
    above, below = around[:, :-2, 1:-1], around[:, 2:, 1:-1]
    left, right = around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    rows = (heights - ring * (above.long() + below.long())).clamp_min(0)  # that no neighbour above or below reaches
    columns = (widths - ring * (left.long() + right.long())).clamp_min(0)
    untouched = rows * columns
    for diagonal, beside, over in (
        (around[:, :-2, :-2], left, above),
        (around[:, :-2, 2:], right, above),
        (around[:, 2:, :-2], left, below),
        (around[:, 2:, 2:], right, below),
    ):
        corner = torch.minimum(rows, heights.clamp(max=ring)) * torch.minimum(columns, widths.clamp(max=ring))
        untouched = untouched - corner * (diagonal & ~beside & ~over)
    return (heights * widths - untouched.clamp_min(0)) * ~active
