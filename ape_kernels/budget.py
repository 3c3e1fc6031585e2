"""Runs the patches of one image within a budget of FLOPs (`ape_kernels.policy.Budget`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ape_kernels.backends import get_backend
from ape_kernels.backends.torch.run import run_head, run_tail
from ape_kernels.policy import Budget

CHUNK = 64  # patches whose head, stage or tail run at once


def run_patches_within(
    patches: Tensor,
    table: Tensor,
    weights: Tensor,
    frame_table: Tensor,
    frame_weights: Tensor,
    stage_flops: list[int],
    boundary: float,
    budget: float,
    upscale: int,
    out_channels: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `run_patches`, all patches together using at most `budget` of the body's FLOPs at full depth.

    frame_table, frame_weights: the program as the torch backend packs it, which runs head and tail; the stages run on
    `backend`. A patch also leaves where its prediction reaches `boundary`. stage_flops: of each stage. The feature
    maps of all patches are kept, and the host chooses who goes on: not for CUDA graphs.
    """
    count, _, height, width = patches.shape
    device = patches.device
    sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
    exit_index = torch.zeros(count, dtype=torch.int64)
    capacity = torch.full((count,), torch.nan)
    run_stage = get_backend(backend).run_stage
    if not count:
        return sr, exit_index.to(device), capacity.to(device)
    chunks = [slice(begin, begin + CHUNK) for begin in range(0, count, CHUNK)]
    features = torch.cat([run_head(patches[chunk], frame_table, frame_weights) for chunk in chunks])

    def run(stage: int, ids: list[int]) -> None:
        for begin in range(0, len(ids), CHUNK):
            active = torch.tensor(ids[begin : begin + CHUNK], device=device)
            # never: who leaves is decided here
            out, order, known, _ = run_stage(features, active, table, weights, stage, torch.inf, None)
            features[order] = out
            rows, known = order.cpu(), known.cpu()
            exit_index[rows] = stage
            capacity[rows] = torch.where(known.isnan(), capacity[rows], known)  # a rest of blocks may have no exit

    spending = Budget(budget, count, stage_flops)
    spending.left -= count * stage_flops[0]
    run(0, list(range(count)))
    waiting = _waiting(range(count), exit_index, capacity, boundary, len(stage_flops))
    while chosen := spending.choose(waiting):
        by_stage: dict[int, list[int]] = {}
        for patch in chosen:
            by_stage.setdefault(waiting.pop(patch)[0], []).append(patch)
        for stage, ids in by_stage.items():
            run(stage, ids)
        waiting |= _waiting(chosen, exit_index, capacity, boundary, len(stage_flops))
    for chunk in chunks:
        pictures = run_tail(patches[chunk], features[chunk], frame_table, frame_weights)
        sr[chunk] = pictures[:, :, : sr.shape[2], : sr.shape[3]]  # a module may have padded the patch to its windows
    return sr, exit_index.to(device), capacity.to(device)


def _waiting(
    patches: range | list[int], exit_index: Tensor, capacity: Tensor, boundary: float, stages: int
) -> dict[int, tuple[int, float]]:
    """Of `patches` those that may go on: their next stage and predicted gain."""
    depth, gain = exit_index.tolist(), capacity.tolist()
    return {p: (depth[p] + 1, gain[p]) for p in patches if depth[p] + 1 < stages and not 1 - gain[p] >= boundary}
