"""The processes that `torchrun` has started, and the device of each."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from ape_sr.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that train together.

    rank: number of this process, from 0. world: number of processes. local: number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` over all processes. Every process must call it."""
        if self.world == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.world

    def from_first(self, value: Value) -> Value:
        """The value that the first process gives. Every process must call it."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def check_same(self, name: str, value: object) -> None:
        """UserError, which begins with `name`, unless all processes give the same. Every process must call it."""
        if self.world == 1:
            return
        values: list[object] = [None] * self.world
        distributed.all_gather_object(values, value)
        others = [str(other) for other in values if other != values[0]]
        if others:
            raise UserError(f"{name}: expected the same in all processes, got {values[0]} and {others[0]}")


def ranks_from_environment() -> Ranks:
    """The ranks from torchrun's RANK, WORLD_SIZE and LOCAL_RANK. Without torchrun there is one process.

    Raises UserError for values that torchrun does not set.
    """
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
    """In this context the processes are connected: by NCCL on GPUs, else by gloo. A single process needs nothing."""
    ranks = ranks_from_environment()
    if ranks.world == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
        # The process may end now. Threads of gloo must not hold tensors any more then: Python is gone when they free
        # them, and the process aborts. After a barrier they hold nothing of what came before.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def named_device(name: str) -> torch.device:
    """The device with this name; for "cuda" the GPU of this process. Raises UserError if it cannot be used."""
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:  # pyright: ignore[reportUnnecessaryComparison] - it is, of "cuda"
            device = torch.device("cuda", ranks_from_environment().local)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if PyTorch was built without this kind of device
        raise UserError(f"device: {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def default_device(backend: str) -> torch.device:
    """The GPU of this process, or the CPU if there is no GPU or the backend is "cpu", by name or by APE_BACKEND."""
    if not wants_gpu(backend) or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks_from_environment().local % torch.cuda.device_count())


def wants_gpu(backend: str) -> bool:
    """Whether a GPU is to be used where there is one: not for the backend "cpu", by name or by APE_BACKEND."""
    return (os.environ.get("APE_BACKEND", "auto") if backend == "auto" else backend) != "cpu"
