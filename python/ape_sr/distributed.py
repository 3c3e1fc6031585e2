"""The processes that `torchrun` started: who am I, and what do they do together."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ape_sr.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, 0 without torchrun. world: how many there are. local: rank on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` over the processes that have joined."""
        if self.world == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.world


def ranks_from_environment() -> Ranks:
    """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; one process without it. UserError for nonsense."""
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if values["WORLD_SIZE"] is None:
        return Ranks()
    try:
        ranks = Ranks(int(values["RANK"] or 0), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"] or 0))
    except ValueError:
        ranks = Ranks(world=0)
    if not 0 <= ranks.rank < ranks.world:
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise UserError(f"RANK, WORLD_SIZE: expected what torchrun sets, got {got}")
    return ranks


@contextmanager
def joined(device: torch.device) -> Generator[Ranks, None, None]:
    """Join the other processes for the length of the block: NCCL on GPUs, gloo elsewhere; nothing for a lone one."""
    ranks = ranks_from_environment()
    if ranks.world == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
