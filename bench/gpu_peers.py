"""What a user would run on a GPU instead: the network in PyTorch itself, in float16 and channels_last.

Peers read and write float16, so that their times contain no conversion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from gpu_device import Gpu, Run, StandIn
from reference import literal_forward
from torch import Tensor, nn


def half(model: nn.Module, device: Gpu | StandIn) -> nn.Module:
    """A copy of the network as a user would prepare it, in float16; in float32 for the dry run."""
    torch.backends.cudnn.benchmark = True
    dtype = torch.float16 if device.kind == "cuda" else torch.float32
    return copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)


def prepared(patches: Tensor, network: nn.Module) -> Tensor:
    """The patches in the dtype of `network`, channels_last."""
    return patches.to(next(network.parameters()).dtype).to(memory_format=torch.channels_last)


def in_batches(forward: Callable[[Tensor], Tensor], patches: Tensor, batch: int, device: Gpu | StandIn) -> Run:
    """Runs all patches by replays of one graph of `batch` patches. Small batches stay in the cache."""
    static = patches[:batch].clone(memory_format=torch.channels_last)
    replay = device.graph(lambda: forward(static))
    out: list[Tensor] = []

    def run() -> Tensor:
        for begin in range(0, len(patches), batch):
            static.copy_(patches[begin : begin + batch])
            picture = replay()
            if not out:
                out.append(picture.new_empty(len(patches), *picture.shape[1:]))
            out[0][begin : begin + batch] = picture
        return out[0]

    return run


def authors(model: nn.Module, patches: Tensor) -> Run:
    """The test loop of the paper's authors in float32, at full depth."""
    return lambda: literal_forward(model, patches, 2.0)[0]
