"""Runs the patches of one image within a budget of FLOPs (`ape_kernels.policy.Budget`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends.protocol import PatchResults
from ape_kernels.backends.torch.interpreter import run_head, run_tail
from ape_kernels.policy import Budget
from ape_kernels.table import PackedProgram

CHUNK = 64  # patches whose head, stage or tail run at once


@dataclass(frozen=True)
class Spending:
    """What a budget needs to know of a network.

    frame: the program as the torch backend packs it, which runs head and tail; the stages run on `backend`.
    stage_flops: of each stage. share: of the body's FLOPs at full depth that an image may take.
    """

    frame: PackedProgram
    stage_flops: list[int]
    share: float
    upscale: int
    out_channels: int
    backend: str


@torch.no_grad()
def run_within(patches: Tensor, packed: PackedProgram, spending: Spending, boundary: float) -> PatchResults:
    """As `ops.run_patches`, all patches together using at most the share of FLOPs that may be spent.

    A patch also leaves where its prediction reaches `boundary`. The feature maps of all patches are kept, and the host
    chooses who goes on: not for CUDA graphs.
    """
    count, device = len(patches), patches.device
    frame, stage_flops = spending.frame, spending.stage_flops
    sr = PatchResults.empty(patches, spending.upscale, spending.out_channels).sr
    exit_index = torch.zeros(count, dtype=torch.int64)
    capacity = torch.full((count,), torch.nan)
    if not count:
        return PatchResults(sr, exit_index.to(device), capacity.to(device))
    chunks = [slice(begin, begin + CHUNK) for begin in range(0, count, CHUNK)]
    features = torch.cat([run_head(patches[chunk], frame) for chunk in chunks])

    def run(stage: int, ids: list[int]) -> None:
        for begin in range(0, len(ids), CHUNK):
            active = torch.tensor(ids[begin : begin + CHUNK], device=device)
            # never: who leaves is decided here
            out, order, known, _ = ops.run_stage(
                features, active, packed.table, packed.weights, stage, torch.inf, None, spending.backend
            )
            features[order] = out
            rows, known = order.cpu(), known.cpu()
            exit_index[rows] = stage
            capacity[rows] = torch.where(known.isnan(), capacity[rows], known)  # a rest of blocks may have no exit

    budget = Budget(spending.share, count, stage_flops)
    budget.left -= count * stage_flops[0]
    run(0, list(range(count)))
    waiting = _waiting(range(count), exit_index, capacity, boundary, len(stage_flops))
    while chosen := budget.choose(waiting):
        by_stage: dict[int, list[int]] = {}
        for patch in chosen:
            by_stage.setdefault(waiting.pop(patch)[0], []).append(patch)
        for stage, ids in by_stage.items():
            run(stage, ids)
        waiting |= _waiting(chosen, exit_index, capacity, boundary, len(stage_flops))
    for chunk in chunks:
        pictures = run_tail(patches[chunk], features[chunk], frame)
        sr[chunk] = pictures[:, :, : sr.shape[2], : sr.shape[3]]  # a module may have padded the patch to its windows
    return PatchResults(sr, exit_index.to(device), capacity.to(device))


def _waiting(
    patches: range | list[int], exit_index: Tensor, capacity: Tensor, boundary: float, stages: int
) -> dict[int, tuple[int, float]]:
    """Of `patches` those that may go on: their next stage and predicted gain."""
    depth, gain = exit_index.tolist(), capacity.tolist()
    return {p: (depth[p] + 1, gain[p]) for p in patches if depth[p] + 1 < stages and not 1 - gain[p] >= boundary}
