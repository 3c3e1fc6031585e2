"""Rows measured in turns, in one process, with a raw loop beside every sample.

The machine's speed changes from second to second, so only ratios of samples that were taken side by side mean
anything. Code with AMX tile loads may run several times slower for seconds to minutes, whatever it computes. Other
processes, or the host of a virtual machine, may take cores away for milliseconds. The raw loop and the operating
system's count of the cores' time show such disturbances, and samples taken then are dropped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ape_kernels.native import core

FAST_ENOUGH = 0.7  # samples whose raw loop ran at less than this share of the best raw loop's speed are dropped
DISTURBED = 0.03  # samples with more than this share of all cores' time (and 0.03 s) spent elsewhere are dropped
SETTLE = 0.03  # seconds of pause before a sample: PyTorch's threads wait actively for work for 15 ms
LOOPS = 5  # The best of so many raw loops counts: a slow phase shows in all of them, a short interruption does not.
FLAGS = {
    "amx": "-mavx512f -mamx-tile -mamx-bf16",
    "avx512": "-mavx512f",
    "avx2": "-mavx2 -mfma",
}


@dataclass
class Samples:
    """Samples of one row, one entry of each list per sample.

    seconds: of one call. raw: FLOP/s per core of the raw loop, 0 without one. cpu: seconds of all cores that this
    process used. elsewhere: seconds of all cores that others used. turns: the turn in which the sample was taken.
    dropped: how many samples were dropped.
    """

    seconds: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    dropped: int = 0

    def keep(self, wanted: list[int]) -> None:
        """Drop all samples except those at these positions."""
        self.dropped = len(self.seconds) - len(wanted)
        for name in ("seconds", "raw", "cpu", "elsewhere", "turns"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in wanted])


class ReplayClock:
    """A clock that advances by recorded samples. With it pytest-benchmark records what was measured in turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += next(self.pending)


CLOCK = ReplayClock()


@cache
def raw_loop(isa: str) -> tuple[Callable[[int], float] | None, str]:
    """A function that measures the FLOP/s per core of the raw loop of `isa`; or None, and why there is none.

    The function takes the number of cores that run the loop at once. It returns the speed of the slowest core.
    """
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
    rounds = 10_000 if isa == "amx" else 200_000  # about 0.5 ms

    def one() -> float:
        begin = time.perf_counter()
        flops = loop(ctypes.c_long(rounds))
        return flops / (time.perf_counter() - begin)

    def best(_: int) -> float:
        return max(one() for _ in range(LOOPS))

    def speed(cores: int) -> float:
        with ThreadPoolExecutor(cores) as pool:  # the call runs without the interpreter lock
            return min(pool.map(best, range(cores)))

    return speed, ""


def loop_of(dtype: torch.dtype) -> str | None:
    """The raw loop of the instructions that the cpu backend uses for this dtype, or None if there is none."""
    isa = core().cpu_isa()
    loop = "amx" if isa == "amx" and dtype == torch.bfloat16 else "avx512" if isa.startswith(("avx512", "amx")) else isa
    return loop if raw_loop(loop)[0] else None


def elsewhere() -> float:
    """Seconds of all cores, since the start, that other processes used or that a virtual machine's host took away."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = fields
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def measure(rows: dict[str, Callable[[], object]], rounds: int, isa: str | None) -> dict[str, Samples]:
    """`rounds` samples of every row, taken in turns after one call to warm up.

    isa: names the raw loop, None for none. The loop runs on as many cores as torch has threads. Samples in a slow phase
    are dropped and taken again, in at most `rounds` more turns. A row without a good sample keeps all its samples and
    counts them as dropped.
    """
    threads, speed = torch.get_num_threads(), raw_loop(isa)[0] if isa else None
    taken: dict[str, Samples] = {name: Samples() for name in rows}
    for run in rows.values():
        run()
    for turn in range(2 * rounds):
        for name, run in rows.items():
            time.sleep(SETTLE)
            before, lost = speed(threads) if speed else 0.0, elsewhere()
            begin, used = time.perf_counter(), time.process_time()
            run()
            seconds, used = time.perf_counter() - begin, time.process_time() - used
            samples = taken[name]
            samples.cpu.append(used)
            samples.seconds.append(seconds)
            samples.elsewhere.append(elsewhere() - lost)
            samples.raw.append(min(before, speed(threads)) if speed else 0.0)
            samples.turns.append(turn)
        good = {name: _good(taken[name], taken) for name in rows}
        if turn + 1 >= rounds and min(map(len, good.values())) >= rounds:
            break
    for name, samples in taken.items():
        samples.dropped = len(samples.seconds)
        if good[name]:
            samples.keep(good[name])
    return taken


def _good(samples: Samples, taken: dict[str, Samples]) -> list[int]:
    """Positions of the samples that were not disturbed."""
    best = max(max(other.raw) for other in taken.values())
    cores = os.cpu_count() or 1
    return [
        i
        for i, raw in enumerate(samples.raw)
        if raw >= FAST_ENOUGH * best
        and samples.elsewhere[i] <= max(0.03, DISTURBED * samples.seconds[i] * cores)  # the clock ticks every 0.01 s
    ]


def selected(request: pytest.FixtureRequest, **group: str) -> tuple[str, ...]:
    """The rows of this test, with these parameters, that pytest's options (such as `-k`) have selected."""
    items = [item for item in request.session.items if item.originalname == request.node.originalname]
    chosen = [item.callspec.params for item in items if item.path == request.node.path]
    return tuple(params["row"] for params in chosen if group.items() <= params.items())


def side_by_side(taken: dict[str, Samples]) -> list[dict[str, float]]:
    """Seconds by row, for every turn in which no sample was dropped."""
    by_turn = {name: dict(zip(samples.turns, samples.seconds, strict=True)) for name, samples in taken.items()}
    shared = set.intersection(*map(set, by_turn.values()))
    return [{name: seconds[turn] for name, seconds in by_turn.items()} for turn in sorted(shared)]


def spread(values: list[float]) -> str:
    """Median and range as text."""
    if not values:
        return "unknown: every turn was disturbed"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f} in {len(values)} turns)"


def replay(
    benchmark: BenchmarkFixture, group: str, row: str, samples: Samples, units: int, facts: dict[str, object]
) -> None:
    """Pass samples to pytest-benchmark, as seconds per unit. A call handles `units` units. The timer is `CLOCK`."""
    benchmark.group = group
    threads = torch.get_num_threads()
    benchmark.extra_info |= {"row": row, "threads": threads, "dropped": samples.dropped, **facts}
    CLOCK.pending = (seconds / units for seconds in samples.seconds)
    benchmark.pedantic(CLOCK.advance, rounds=len(samples.seconds), iterations=1, warmup_rounds=0)
