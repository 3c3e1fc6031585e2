"""Calls of the worker kernel. Python allocates and owns all memory; the kernel computes and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ape_kernels.backends.native_calls import address
from ape_kernels.backends.order import leaving_first
from ape_kernels.backends.protocol import Exits, PatchResults, StageResults
from ape_kernels.native import core
from ape_kernels.table import ELEMENT_TYPES, PackedProgram

DTYPES = (torch.float32, torch.float16)
WHOLE = -1  # in the place of a stage: the whole forward (csrc/cuda/args.h)


def launcher() -> Any:
    """The module with `cuda_plan` and `cuda_run_worker`, which is the native core. Tests put another in its place."""
    return core()


def run_patches(packed: PackedProgram, patches: Tensor, exits: Exits, out: PatchResults) -> None:
    work = _Work(
        input=patches,
        active=None,
        output=out.sr,
        exit_index=out.exit_index,
        capacity=out.capacity,
        leaves=None,
    )
    _run(packed, WHOLE, work, exits)


def run_stage(packed: PackedProgram, stage: int, features: Tensor, active: Tensor, exits: Exits) -> StageResults:
    """As `ops.run_stage`. It does not wait for the device: rows out of range are not refused but give NaN."""
    leaves = features.new_empty(len(active), dtype=torch.bool)
    work = _Work(
        input=features,
        active=active,
        output=features.new_empty(len(active), *features.shape[1:]),
        exit_index=None,
        capacity=features.new_empty(len(active)),
        leaves=leaves,
    )
    _run(packed, stage, work, exits)
    order = leaving_first(leaves)
    return StageResults(work.output[order], active[order], work.capacity[order], leaves.sum()[None])


@dataclass(frozen=True)
class _Work:
    """What one launch reads and writes: the pointers of `WorkerArgs` (csrc/cuda/args.h)."""

    input: Tensor
    active: Tensor | None
    output: Tensor
    exit_index: Tensor | None
    capacity: Tensor
    leaves: Tensor | None


def _run(packed: PackedProgram, stage: int, work: _Work, exits: Exits) -> None:
    """One launch of the worker kernel, for one stage or `WHOLE`, on the current stream of the input's device."""
    native, weights = launcher(), packed.weights
    program = dict(
        table=packed.table.data_ptr(),
        table_rows=len(packed.table),
        weight_count=len(weights),
        element=ELEMENT_TYPES[weights.dtype],
        stage=stage,
    )
    with torch.cuda.device_of(work.input):
        elements, resolution, blocks = native.cuda_plan(**program)
        if not len(work.output):
            return
        height, width = work.input.shape[2] // resolution, work.input.shape[3] // resolution
        blocks = min(blocks, len(work.output))
        scratch = weights.new_empty(blocks * elements * height * width)
        queue = torch.zeros(1, dtype=torch.int32, device=work.input.device)
        native.cuda_run_worker(
            **program,
            weights=weights.data_ptr(),
            input=work.input.data_ptr(),
            input_rows=len(work.input),
            active=address(work.active),
            exit_at=address(exits.exit_at),
            output=work.output.data_ptr(),
            exit_index=address(work.exit_index),
            capacity=work.capacity.data_ptr(),
            leaves=address(work.leaves),
            scratch=scratch.data_ptr(),
            queue=queue.data_ptr(),
            blocks=blocks,
            count=len(work.output),
            height=height,
            width=width,
            boundary=exits.boundary,
            stream=torch.cuda.current_stream().cuda_stream if work.input.is_cuda else 0,
        )
