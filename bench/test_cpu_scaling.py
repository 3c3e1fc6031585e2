"""What exits save and threads bring, in turns within one process: `pytest bench -k scaling -s`.

EDSR 16x64 x4 with 8 exits. A patch that leaves after stage i must cost its share of the FLOPs, and a mix of them the
sum, whatever the order they come in: no core idles while patches wait.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from interleave import measure
from networks import make

from ape_kernels import APEForward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _network(dtype: str) -> APEForward:
    return APEForward(make("EDSR 16x64 x4")[0], 0.0, backend="cpu", dtype=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_with_exits(request, dtype):
    count, rounds = request.config.getoption("--patches"), request.config.getoption("--rounds")
    fast, patches = _network(dtype), torch.rand(count, 3, 48, 48)
    last = len(fast.program.stages) - 1
    mixed = torch.randint(0, last + 1, (count,), generator=torch.Generator().manual_seed(2))
    schedules = {"first": torch.zeros_like(mixed), "last": torch.full_like(mixed, last), "mixed": mixed}
    rows = {name: lambda at=at: fast.forward_patches(patches, at) for name, at in schedules.items()}
    samples = measure(rows, rounds, "amx" if dtype == "bf16" else "avx512")
    seconds = {name: statistics.median(taken.seconds) for name, taken in samples.items()}
    # head and tail cost the same for all: what the body costs a stage follows from the two uniform schedules
    stage = (seconds["last"] - seconds["first"]) / last
    expected = seconds["first"] + stage * float(mixed.float().mean())
    off = (seconds["mixed"] - expected) / (stage * (float(mixed.float().mean()) + 1))
    print(f"\n{dtype}: {seconds}, mixed expected {expected:.4f}: the body is {off:+.1%} off its share of the FLOPs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_with_threads(request, dtype):
    count, rounds = request.config.getoption("--patches"), request.config.getoption("--rounds")
    fast, patches = _network(dtype), torch.rand(count, 3, 48, 48)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        fast.forward_patches(patches)

    before = torch.get_num_threads()
    try:
        samples = measure({n: lambda n=n: run(n) for n in (1, 2)}, rounds, "amx" if dtype == "bf16" else "avx512")
    finally:
        torch.set_num_threads(before)
    one, two = (statistics.median(samples[n].seconds) for n in (1, 2))
    print(f"\n{dtype}: 1 thread {one:.4f} s, 2 threads {two:.4f} s: {one / two:.2f}x")
