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


def named_device(name: str) -> torch.device:
    """The device called `name`; of "cuda" the GPU of this process. UserError if it cannot be used."""
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:  # pyright: ignore[reportUnnecessaryComparison] - it is, of "cuda"
            device = torch.device("cuda", ranks_from_environment().local)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without that kind of device
        raise UserError(f"device: {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def default_device(backend: str) -> torch.device:
    """The GPU of this process where there is one, but the CPU for the backend "cpu", by name or by APE_BACKEND."""
    wish = os.environ.get("APE_BACKEND", "auto") if backend == "auto" else backend
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks_from_environment().local % torch.cuda.device_count())
