"""What a forward pass did: exits and FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ape_kernels.backends.protocol import Depths
from ape_kernels.plan.plan import Plan
from ape_kernels.program import PatchProgram


@dataclass(frozen=True)
class Report:
    """Exits and FLOPs of one image batch, on its patch grid or on its cells.

    exit_index: int64 ``[B, rows, columns]``, the stage after which each patch or cell left, counted from 0; -1 for a
    cell that was interpolated.
    capacity: float32 ``[B, rows, columns]``, the incremental capacity that was predicted there; NaN where the network
    has no exits.
    patches_per_exit: int64 ``[stages]`` on the CPU. interpolated: the cells that are in no exit.
    flops, flops_full: FLOPs of the whole network, as run and at full depth.
    body_flops, body_flops_full: the same for its stages alone.
    cell: sides of the cells in pixels of the image, the last ones cut off by its edge; None for a grid of patches.
    plan: what was planned, with the fidelity predicted for each cell and for the picture; None without a plan.
    """

    exit_index: Tensor
    capacity: Tensor
    patches_per_exit: Tensor
    interpolated: int
    flops: int
    flops_full: int
    body_flops: int
    body_flops_full: int
    cell: int | None
    plan: Plan | None

    def __str__(self) -> str:
        """Share of the computation, what a plan expects, and how deep patches or cells ran."""
        if not self.exit_index.numel():
            return "no images"
        words = [f"{self.share:.1%} of the computation"]
        if self.plan is not None:
            words = [str(self.plan)]
        elif self.interpolated:
            words.append(f"{self.interpolated / self.exit_index.numel():.0%} interpolated")
        if self.interpolated < self.exit_index.numel() and len(self.patches_per_exit) > 1:
            words.append(f"mean exit {self.mean_exit:.2f} of 0..{len(self.patches_per_exit) - 1}")
        return ", ".join(words)

    def __repr__(self) -> str:
        what = "patches" if self.cell is None else f"cells of {self.cell} pixels"
        return f"{type(self).__name__}({'x'.join(map(str, self.exit_index.shape))} {what}, {self})"

    @property
    def mean_exit(self) -> float:
        """Mean exit index over all patches that the network ran on."""
        return float(self.exit_index[self.exit_index >= 0].double().mean())

    @property
    def share(self) -> float:
        """All computation as a share of full depth's; with a plan, rings and interpolation are in it.

        NaN for an empty batch, as is `mean_exit`.
        """
        if self.plan is not None:
            return float(self.plan.share.mean())
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
        0,
        done(whole),
        total * pixels * whole[-1],
        done(body),
        total * pixels * body[-1],
        None,
        None,
    )


def make_cell_report(program: PatchProgram, depths: Depths, image: Tensor, plan: Plan | None) -> Report:
    """The report of images ``[B, C, H, W]`` whose cells ran to `depths` (in pixels of the image), planned by `plan`."""
    batch, _, height, width = image.shape
    stages, cell = len(program.stages), depths.cell
    rows, columns = (torch.arange(0, side, cell, device="cpu") for side in (height, width))
    area = ((rows + cell).clamp(max=height) - rows)[:, None] * ((columns + cell).clamp(max=width) - columns)
    area = area.expand(batch, -1, -1)
    exit_at = torch.full(area.shape, stages - 1, device=image.device) if depths.exit_at is None else depths.exit_at
    index = exit_at.cpu()

    def done(flops_to_stage: list[int]) -> int:
        flops = torch.tensor([*flops_to_stage, 0], device="cpu")  # -1 is the last
        return int((area * flops[index]).sum()) // program.fold**2

    whole = [program.flops_to_stage(i) for i in range(stages)]
    body = [program.body_flops_to_stage(i) for i in range(stages)]
    pixels = int(area.sum())
    return Report(
        exit_at,
        torch.full(area.shape, math.nan, dtype=torch.float32, device=image.device),
        torch.bincount(index[index >= 0], minlength=stages),
        int((index < 0).sum()),
        done(whole),
        pixels * whole[-1] // program.fold**2,
        done(body),
        pixels * body[-1] // program.fold**2,
        cell,
        plan,
    )
