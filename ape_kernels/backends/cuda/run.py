"""Calls of the worker kernel: Python allocates and owns, the kernel computes and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ape_kernels.backends.order import leaving_first
from ape_kernels.native import core

ELEMENTS = {torch.float32: 0, torch.float16: 1}  # ElementType in csrc/cuda/plan.h
WHOLE = -1  # in the place of a stage: the whole forward (csrc/cuda/args.h)


def launcher() -> Any:
    """What has `cuda_plan` and `cuda_run_worker`: the native core."""
    return core()


def run_patches(
    patches: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    exit_at: Tensor | None,
    upscale: int,
    out_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    count, _, height, width = patches.shape
    sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
    exit_index = patches.new_empty(count, dtype=torch.int64)
    capacity = patches.new_empty(count)
    worker = _Worker(table, weights, WHOLE)
    worker.run(patches, None, exit_at, sr, exit_index, capacity, None, boundary)
    return sr, exit_index, capacity


def run_stage(
    features: Tensor,
    active: Tensor,
    table: Tensor,
    weights: Tensor,
    stage: int,
    boundary: float,
    exit_at: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `ops.run_stage`; nothing waits for the device, so rows out of range are not refused but come back as NaN."""
    active = active.contiguous()
    out = features.new_empty(len(active), *features.shape[1:])
    capacity = features.new_empty(len(active))
    leaves = features.new_empty(len(active), dtype=torch.bool)
    worker = _Worker(table, weights, stage)
    worker.run(features, active, exit_at, out, None, capacity, leaves, boundary)
    order = leaving_first(leaves)
    return out[order], active[order], capacity[order], leaves.sum()[None]


@dataclass(frozen=True)
class _Worker:
    """The worker kernel with a packed program, for one stage or `WHOLE`."""

    table: Tensor
    weights: Tensor
    stage: int

    def run(
        self,
        pixels: Tensor,
        active: Tensor | None,
        exit_at: Tensor | None,
        out: Tensor,
        exit_index: Tensor | None,
        capacity: Tensor,
        leaves: Tensor | None,
        boundary: float,
    ) -> None:
        """One launch, on the current stream of the device of `pixels`; the pointers of `WorkerArgs` in its order."""
        pixels = pixels.contiguous()
        exit_at = None if exit_at is None else exit_at.to(pixels.device).contiguous()
        native, program = launcher(), self._program()
        with torch.cuda.device_of(pixels):
            elements, resolution, blocks = native.cuda_plan(*program)
            if not len(out):
                return
            height, width = pixels.shape[2] // resolution, pixels.shape[3] // resolution
            blocks = min(blocks, len(out))
            scratch = self.weights.new_empty(blocks * elements * height * width)
            queue = torch.zeros(1, dtype=torch.int32, device=pixels.device)
            native.cuda_run_worker(
                *program,
                self.weights.data_ptr(),
                pixels.data_ptr(),
                len(pixels),
                *map(_pointer, (active, exit_at, out, exit_index, capacity, leaves, scratch, queue)),
                blocks,
                len(out),
                height,
                width,
                boundary,
                torch.cuda.current_stream().cuda_stream if pixels.is_cuda else 0,
            )

    def _program(self) -> tuple[int, int, int, int, int]:
        """What `cuda_plan` takes: table, its rows, elements of the weights, their type, stage."""
        return self.table.data_ptr(), len(self.table), len(self.weights), ELEMENTS[self.weights.dtype], self.stage


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
