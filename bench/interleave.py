"""Rows measured in turns, in one process, with a raw loop beside every sample.

The machine's speed changes from second to second, so only ratios of samples that were taken side by side mean
anything. Code with AMX tile loads may run several times slower for seconds to minutes, whatever it computes:
the raw loop shows it, and samples taken then are dropped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FAST_ENOUGH = 0.7  # of the best raw loop seen: slower samples are dropped
FLAGS = {
    "amx": "-mavx512f -mamx-tile -mamx-bf16",
    "avx512": "-mavx512f",
    "avx2": "-mavx2 -mfma",
}


@dataclass
class Samples:
    """Samples of one row: seconds a call, and the raw loop's FLOP/s beside each (0 without one)."""

    seconds: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    dropped: int = 0


class ReplayClock:
    """A clock that moves by recorded samples: hands pytest-benchmark what was measured in turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += next(self.pending)


@cache
def raw_loop(isa: str) -> tuple[Callable[[], float] | None, str]:
    """A function that gives the FLOP/s of `isa`'s raw loop on one core now, or None and why not."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if isa not in FLAGS:
        return None, f"no raw loop for {isa}"
    if compiler is None:
        return None, "no C++ compiler for the raw loop"
    folder = tempfile.mkdtemp()
    library = f"{folder}/raw_loop.so"
    command = [compiler, "-O3", "-shared", "-fPIC", *FLAGS[isa].split(), "-o", library]
    done = subprocess.run([*command, str(Path(__file__).with_name("raw_loop.cpp"))], capture_output=True, text=True)
    if done.returncode:
        return None, f"raw loop does not compile: {done.stderr.splitlines()[0]}"
    loop = ctypes.CDLL(library).raw_loop
    loop.restype = ctypes.c_double
    rounds = 10000 if isa == "amx" else 200000

    def speed() -> float:
        begin = time.perf_counter()
        flops = loop(ctypes.c_long(rounds))
        return flops / (time.perf_counter() - begin)

    return speed, ""


def measure(rows: dict[str, Callable[[], object]], rounds: int, isa: str | None) -> dict[str, Samples]:
    """`rounds` samples of every row, taken in turns after one call to warm up.

    isa: the raw loop's, None for none. Samples in a slow phase are dropped and taken again, at most
    `rounds` more times; a row without a fast sample keeps what it has.
    """
    speed = raw_loop(isa)[0] if isa else None
    taken: dict[str, Samples] = {name: Samples() for name in rows}
    for run in rows.values():
        run()
    for turn in range(2 * rounds):
        for name, run in rows.items():
            before = speed() if speed else 0.0
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
            taken[name].seconds.append(seconds)
            taken[name].raw.append(min(before, speed()) if speed else 0.0)
        best = max(max(samples.raw) for samples in taken.values())
        kept = [sum(raw >= FAST_ENOUGH * best for raw in samples.raw) for samples in taken.values()]
        if turn + 1 >= rounds and min(kept) >= rounds:
            break
    for samples in taken.values():
        good = [i for i, raw in enumerate(samples.raw) if raw >= FAST_ENOUGH * best]
        samples.dropped = len(samples.seconds) - len(good)
        if good:
            samples.seconds = [samples.seconds[i] for i in good]
            samples.raw = [samples.raw[i] for i in good]
    return taken
