"""How much time exits and threads save: `pytest bench/test_cpu_scaling.py -s`.

EDSR 16x64 x4 with 8 exits. The time of a patch that leaves after stage i must be its share of the FLOPs. The time of a
mix of such patches must be the sum, in any order, because no core is idle while patches wait. Figures are medians of
samples that were taken in turns within one process. Disturbed samples are dropped.
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import pytest
import torch
from interleave import CLOCK, Samples, loop_of, measure, raw_loop, replay, side_by_side, spread
from networks import make

from ape_kernels import APEForward

NETWORK = "EDSR 16x64 x4"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURNS = 4  # so many times --rounds, because these samples are short
Group = tuple[dict[str, Samples], dict[str, Any]]


def _network(dtype: str) -> APEForward:
    return APEForward(make(NETWORK)[0], 0.0, backend="cpu", dtype=DTYPES[dtype])


def _schedules(count: int, last: int) -> dict[str, torch.Tensor]:
    """For each name, the stages after which `count` patches leave: all after one stage, or mixed in several orders."""
    uniform = {f"all after stage {i + 1}": torch.full((count,), i) for i in range(last + 1)}
    shallow_first = torch.arange(count) * (last + 1) // count
    shuffled = shallow_first[torch.randperm(count, generator=torch.Generator().manual_seed(2))]
    return uniform | {"mixed, deep last": shallow_first, "mixed, shuffled": shuffled}


@cache
def exits(dtype: str, count: int, rounds: int) -> Group:
    """Samples by schedule of `count` patches, and how far the body's time is from its share of the FLOPs."""
    fast, patches = _network(dtype), torch.rand(count, 3, 48, 48)
    last = len(fast.program.stages) - 1
    schedules = _schedules(count, last)
    rows = {name: lambda at=at: fast.forward_patches(patches, at) for name, at in schedules.items()}
    samples = measure(rows, TURNS * rounds, loop_of(DTYPES[dtype]))
    # Head and tail take the same time in all schedules. The slope over the uniform schedules is the time of a stage.
    median = {name: statistics.median(taken.seconds) for name, taken in samples.items()}
    stages = {name: float(at.float().mean()) + 1 for name, at in schedules.items()}
    uniform = [name for name in rows if name.startswith("all")]
    slope, rest = statistics.linear_regression([stages[n] for n in uniform], [median[n] for n in uniform])
    facts = {}
    for name in rows:
        taken, expected = samples[name], rest + slope * stages[name]
        off = (median[name] - expected) / (slope * stages[name])
        busy = statistics.median(
            cpu / (torch.get_num_threads() * seconds) for cpu, seconds in zip(taken.cpu, taken.seconds, strict=True)
        )
        facts[name] = {"body_off": off, "cores_busy": busy}
        print(f"\n{dtype}, {name}: {median[name]:.4f} s, body {off:+.1%} from its share of the FLOPs", end="")
        print(f", cores busy {busy:.1%}, {taken.dropped} samples dropped", end="")
    return samples, facts


@cache
def threads(dtype: str, count: int, rounds: int, most: int) -> Group:
    """Samples by number of threads, and the speed-up of `most` threads over one, also that of the raw loop."""
    fast, patches = _network(dtype), torch.rand(count, 3, 48, 48)
    loop, raw = loop_of(DTYPES[dtype]), []
    speed = raw_loop(loop)[0] if loop else None

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        fast.forward_patches(patches)

    rows = {f"{n} threads": lambda n=n: run(n) for n in (1, most)}
    if speed:
        rows["raw loop"] = lambda: raw.append(most * speed(most) / speed(1))
    before = torch.get_num_threads()
    try:
        samples = measure(rows, TURNS * rounds, loop)
    finally:
        torch.set_num_threads(before)
    samples.pop("raw loop", None)
    speedup = [turn["1 threads"] / turn[f"{most} threads"] for turn in side_by_side(samples)]
    print(f"\n{dtype}: {most} threads are faster than one by {spread(speedup)}, the raw loop by {spread(raw)}")
    facts = {"speedup": statistics.median(speedup)} if speedup else {}
    return samples, facts | ({"raw_speedup": statistics.median(raw)} if raw else {})


@pytest.mark.parametrize("row", _schedules(8, 7))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(timer=CLOCK)
def test_scaling_with_exits(benchmark, request, dtype, row):
    """Seconds per patch."""
    count, rounds = request.config.getoption("--patches"), request.config.getoption("--rounds")
    samples, facts = exits(dtype, count, rounds)
    replay(benchmark, f"cpu {NETWORK} {dtype}, exits", row, samples[row], count, facts[row])


@pytest.mark.parametrize("one", (True, False), ids=("one", "all"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(timer=CLOCK)
def test_scaling_with_threads(benchmark, request, dtype, one):
    """Seconds per patch."""
    count, rounds = request.config.getoption("--patches"), request.config.getoption("--rounds")
    most = request.config.getoption("--threads")
    if most < 2:
        pytest.skip("one thread")
    samples, facts = threads(dtype, count, rounds, most)
    row = f"{1 if one else most} threads"
    replay(benchmark, f"cpu {NETWORK} {dtype}, threads", row, samples[row], count, facts)
