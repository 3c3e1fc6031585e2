"""Every shipped triton configuration, compiled for GPUs that need not be there."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SHARED_LIMIT = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have (CUDA programming guide)
MATRIX = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
PRODUCTS = ("run_patches_kernel", "run_stage_kernel", "row_kernel", "main_kernel", "any_kernel")

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def compile_all(capability: int) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, Path(__file__).with_name("compile_triton.py"), str(capability)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled() -> dict[int, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(SHARED_LIMIT, pool.map(compile_all, SHARED_LIMIT), strict=True))


@pytest.mark.parametrize("capability", SHARED_LIMIT, ids=lambda c: f"sm_{c}")
def test_fits_without_spills_on_tensor_cores(compiled, capability):
    done = compiled[capability]
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 22
    for line in lines:
        print(line)
        assert line["spilled_bytes"] == 0, line
        assert line["registers"] <= 255, line
        assert line["shared_bytes"] <= SHARED_LIMIT[capability] * 1024, line
        assert line["non_coherent_loads"] == 0, line  # feature maps change while the kernel runs
        if line["case"].split()[-1] not in PRODUCTS:
            continue
        assert line["asynchronous_copies"] > 0, line  # the loads of the products are pipelined
        if " fp32 " not in line["case"]:
            assert MATRIX[capability] in line["matrix"], line
