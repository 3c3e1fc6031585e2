"""The few things that depend on the kind of device: what identifies it, how to wait for it, how much it can hold."""

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

BUSY = 2  # patches per processor that fill the device and make its workers come back to the queue
TIMED_S, TIMED_RUNS = 0.5, 10  # timing ends when one of these is reached
DRIVER = Path("/proc/driver/nvidia/version")  # on Linux; PyTorch itself does not give the driver's version


@dataclass(frozen=True)
class Device:
    """A device, described so that another process can find it.

    kind: "cpu" or "cuda". name, capability, driver: a verdict depends on these. uuid, index: which of several devices.
    """

    kind: str
    name: str
    capability: str = ""
    driver: str = ""
    uuid: str = ""
    index: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """The description of `device`. Its properties are read, but no CUDA context is made on it."""
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
        """The part that a verdict depends on. Cards of the same kind share their verdicts."""
        return {"kind": self.kind, "name": self.name, "capability": self.capability, "driver": self.driver}

    def find(self) -> torch.device:
        """The same device in this process. It becomes the current one.

        It is looked up by its uuid: with another CUDA_VISIBLE_DEVICES its index may differ from that in the other
        process. Raises RuntimeError if it is not visible here.
        """
        if self.kind != "cuda":
            return torch.device(self.kind)
        visible = range(torch.cuda.device_count())
        found = [i for i in visible if str(torch.cuda.get_device_properties(i).uuid) == self.uuid]
        if not found:
            raise RuntimeError(f"device: expected {self.name} {self.uuid} among the visible devices, did not find it")
        torch.cuda.set_device(found[0])
        return torch.device("cuda", found[0])


def wait_for(device: torch.device) -> None:
    """Wait until everything that was started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processors(device: torch.device) -> int:
    """The number of units of `device` that work at once: multiprocessors, or CPU cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return os.cpu_count() or 1


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on `device`. For a CPU this is 8 GiB, which the patches of a verification do not reach."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 33


def fill(device: torch.device, patches: float, size: int, count: int) -> int:
    """How often `count` inputs are repeated to fill the device: at least twice.

    patches: that one input amounts to. size: bytes that one takes; together they take an eighth of the free memory at
    most, since whoever asks has a model and pictures there.
    """
    wanted = min(BUSY * processors(device) / patches, free_bytes(device) / (8 * size))
    return max(2, math.ceil(wanted / count))


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median time of some calls, each with a wait for the device before and after it. The caller has warmed up."""
    seconds: list[float] = []
    while sum(seconds) < TIMED_S and len(seconds) < TIMED_RUNS:
        wait_for(device)
        begin = time.perf_counter()
        call()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
