"""The few things that depend on the kind of device: what identifies it, how to wait for it, how much it holds."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

BUSY = 2  # patches for each processor of the device make it full, and its queue run over
TIMED_S, TIMED_RUNS = 0.5, 10  # timing ends with either
DRIVER = Path("/proc/driver/nvidia/version")  # of Linux; elsewhere PyTorch has no name for the driver's version


@dataclass(frozen=True)
class Device:
    """A device as another process can find it again.

    kind: "cpu" or "cuda". name, capability, driver: what a verdict depends on. uuid, index: which of several.
    """

    kind: str
    name: str
    capability: str = ""
    driver: str = ""
    uuid: str = ""
    index: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """What `device` is; asks for its properties, which makes no context on it."""
        if device.type != "cuda":
            return cls(device.type, platform.machine())
        index = torch.cuda.current_device() if device.index is None else device.index  # pyright: ignore[reportUnnecessaryComparison] - it is, of "cuda"
        properties = torch.cuda.get_device_properties(index)
        driver = DRIVER.read_text().partition("\n")[0] if DRIVER.exists() else ""
        return cls(
            "cuda",
            properties.name,
            f"{properties.major}.{properties.minor}",
            driver,
            str(properties.uuid),
            index,
        )

    @property
    def identity(self) -> dict[str, str]:
        """What a verdict depends on: cards of one kind share theirs."""
        return {"kind": self.kind, "name": self.name, "capability": self.capability, "driver": self.driver}

    def find(self) -> torch.device:
        """The same device in this process, made the current one; RuntimeError if it is not visible here.

        CUDA_VISIBLE_DEVICES may have been changed since the other process began, and the index with it.
        """
        if self.kind != "cuda":
            return torch.device(self.kind)
        visible = range(torch.cuda.device_count())
        found = [i for i in visible if str(torch.cuda.get_device_properties(i).uuid) == self.uuid]
        if not found:
            raise RuntimeError(f"device: expected {self.name} {self.uuid} among the visible ones, found it not")
        torch.cuda.set_device(found[0])
        return torch.device("cuda", found[0])


def wait_for(device: torch.device) -> None:
    """Until all that was started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processors(device: torch.device) -> int:
    """What works at once on `device`: multiprocessors, or cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return os.cpu_count() or 1


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on `device`; on the CPU a figure that patches never reach."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 33


def fill(device: torch.device, patches: float, size: int, count: int) -> int:
    """How often `count` inputs are repeated to fill the device: at least twice.

    patches: that one input amounts to. size: bytes that one takes; together they take an eighth of the free memory at
    most, since whoever asks has a model and pictures there.
    """
    wanted = min(BUSY * processors(device) / patches, free_bytes(device) / (8 * size))
    return max(2, math.ceil(wanted / count))


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of some calls, the device waited for before and after each; whatever is made once has been made before."""
    seconds: list[float] = []
    while sum(seconds) < TIMED_S and len(seconds) < TIMED_RUNS:
        wait_for(device)
        begin = time.perf_counter()
        call()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
