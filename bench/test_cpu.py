"""The cpu backend and its peers at full depth: no patch leaves early.

    pytest bench --benchmark-json=out.json && python bench/report.py out.json
    APE_CPU_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 pytest bench ...      all rows limited to AVX2

The rows of a group that `-k` selects are measured in turns (interleave.py). pytest-benchmark then replays the samples.
"""

from __future__ import annotations

import os
import statistics
from functools import cache

import pytest
import torch
from interleave import CLOCK, Samples, loop_of, measure, replay, selected
from networks import NETWORKS, make
from peers import NEVER, PEERS, Run, Unavailable
from reference import literal_forward
from torch import Tensor, nn

from ape_kernels import APEForward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS = ("ape_kernels torch", "ape_kernels cpu")
HELD = " (AVX2)" if os.environ.get("APE_CPU_ISA") == "avx2" else ""


def _run_of(row: str, model: nn.Module, dtype: torch.dtype, patches: Tensor) -> Run:
    if row in OURS:
        fast = APEForward(model, 0.0, backend=row.split()[1], dtype=dtype)
        return lambda patches: fast.forward_patches(patches)[0]
    return PEERS[row](model, dtype, patches)


def _expected(model: nn.Module, patches: Tensor) -> Tensor:
    if hasattr(model, "exit_interval") and hasattr(model, "tail"):
        return literal_forward(model, patches, NEVER)[0]
    return model(patches)


@cache
def group(
    network: str, dtype_name: str, rows: tuple[str, ...], count: int, rounds: int
) -> tuple[dict[str, Samples], dict[str, str], int]:
    """Samples of those `rows` that can run, the reasons why the others cannot, and the patches per call."""
    model, share = make(network)
    dtype = DTYPES[dtype_name]
    patches = torch.rand(max(2, int(count * share)), 3, 48, 48, generator=torch.Generator().manual_seed(1))
    expected = _expected(model, patches[:2])
    span = float(expected.max() - expected.min())
    runs, reasons = {}, {}
    with torch.inference_mode():
        for row in rows:
            try:
                run = _run_of(row, model, dtype, patches)
            except Unavailable as reason:
                reasons[row] = f"{row}: {reason}"
                continue
            # It must be the same picture: float32 within the contract, bf16 within the rounding of all operands.
            error = float((run(patches[:2]) - expected).abs().max())
            exact = dtype == torch.float32 or row.startswith("authors")
            assert error <= (1e-4 if exact else 0.05) * max(1.0, span), f"{row} computes another picture: {error:.1e}"
            runs[row] = lambda run=run: run(patches)
        samples = measure(runs, rounds, loop_of(dtype))
    return samples, reasons, len(patches)


@pytest.mark.parametrize("row", [*PEERS, *OURS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.benchmark(timer=CLOCK)
def test_full_depth(benchmark, request, network, dtype, row):
    """Seconds per patch."""
    option = request.config.getoption
    rows = selected(request, network=network, dtype=dtype)
    samples, reasons, count = group(network, dtype, rows, option("--patches"), option("--rounds"))
    if row in reasons:
        pytest.skip(reasons[row])
    taken, facts = samples[row], {"patches": count}
    if raw := statistics.median(taken.raw):
        program = APEForward(make(network)[0], 0.0, backend="torch").program
        body = program.body_flops_to_stage(len(program.stages) - 1) * 48 * 48
        speed = body * count / statistics.median(taken.seconds) / torch.get_num_threads()
        facts |= {"raw_loop": loop_of(DTYPES[dtype]), "raw_gflops": raw / 1e9, "body_over_raw": speed / raw}
    replay(benchmark, f"cpu {network} {dtype}{HELD}", row, taken, count, facts)
