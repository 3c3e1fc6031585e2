"""Full depth, patches only: the paper's eager forward against the backends, on the same random patches.

pytest bench --benchmark-json=out.json
"""

from __future__ import annotations

import pytest
import torch
from reference import literal_forward

from ape_kernels import APEForward
from ape_sr.models import EDSR

PATCHES = 16
NEVER = 2.0  # tanh does not reach it


@pytest.fixture(scope="module")
def model() -> EDSR:
    torch.manual_seed(0)
    return EDSR(scale=4, n_resblocks=16, n_feats=64, exit_interval=2).eval().requires_grad_(False)


@pytest.mark.parametrize("row", ["authors' eager forward", "torch", "cpu"])
@pytest.mark.benchmark(group="cpu EDSR 16x64 x4 fp32, full depth", min_rounds=5, warmup=True, warmup_iterations=1)
def test_edsr_16x64(benchmark, model, row):
    patches = torch.rand(PATCHES, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    expected = literal_forward(model, patches, NEVER)[0]
    if row in ("torch", "cpu"):
        fast = APEForward(model, 0.0, backend=row)
        run = lambda: fast.forward_patches(patches)[0]  # noqa: E731
    else:
        run = lambda: literal_forward(model, patches, NEVER)[0]  # noqa: E731
    assert (run() - expected).abs().max() < 1e-4
    benchmark.extra_info["patches"] = PATCHES
    benchmark(run)
