"""What a forward pass did: exits and FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ape_kernels.program import PatchProgram


@dataclass(frozen=True)
class Report:
    """Exits and FLOPs of one image batch on its patch grid.

    exit_index: int64 ``[B, rows, columns]``, the stage after which each patch left, counted from 0.
    capacity: float32 ``[B, rows, columns]``, the incremental capacity that was predicted there; NaN where the network
    has no exits.
    patches_per_exit: int64 ``[stages]`` on the CPU.
    flops, flops_full: FLOPs of the whole network, as run and at full depth.
    body_flops, body_flops_full: the same for its stages alone.
    """

    exit_index: Tensor
    capacity: Tensor
    patches_per_exit: Tensor
    flops: int
    flops_full: int
    body_flops: int
    body_flops_full: int

    @property
    def mean_exit(self) -> float:
        """Mean exit index over all patches."""
        return float(self.exit_index.double().mean())

    @property
    def share(self) -> float:
        """The FLOPs run as a share of the FLOPs at full depth, 0 to 1. NaN for an empty batch, as is `mean_exit`."""
        return self.flops / self.flops_full if self.flops_full else math.nan

    @property
    def body_share(self) -> float:
        """The FLOPs run in the body as a share of the body's FLOPs at full depth, 0 to 1. NaN for an empty batch."""
        return self.body_flops / self.body_flops_full if self.body_flops_full else math.nan


def make_report(program: PatchProgram, exit_index: Tensor, capacity: Tensor, pixels: int) -> Report:
    """The report of patches that left as `exit_index` says.

    exit_index, capacity: as in `Report`. pixels: low-resolution pixels of one patch.
    """
    stages = len(program.stages)
    counts = torch.bincount(exit_index.flatten(), minlength=stages).cpu()
    total = int(counts.sum())

    def done(flops_to_stage: list[int]) -> int:
        return pixels * sum(n * flops for n, flops in zip(counts.tolist(), flops_to_stage, strict=True))

    whole = [program.flops_to_stage(i) for i in range(stages)]
    body = [program.body_flops_to_stage(i) for i in range(stages)]
    return Report(
        exit_index,
        capacity,
        counts,
        done(whole),
        total * pixels * whole[-1],
        done(body),
        total * pixels * body[-1],
    )
