"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

if os.environ.get("APE_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined; for test_triton.py
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the interpreter's products are tiny
os.environ.setdefault("APE_AUTO", "trust")  # test_verify.py verifies; others would wait for it on a GPU

import pytest
import torch
from hypothesis import settings
from support import DEVICE

from ape_kernels import to_program
from ape_kernels.backends import ORDER, get_backend
from ape_sr.models import EDSR

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    from triton.runtime.interpreter import interpreter_builder

    # without a check for integer overflow around each addition: almost twice as fast
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)

torch.backends.cudnn.allow_tf32 = False  # literal forwards are float32 too, not cuDNN's TF32

settings.register_profile("ape", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ape")


def backends() -> list[pytest.param]:
    """Backends to run a network on the test device; one that cannot is skipped with its reason.

    On the CPU, test_cuda.py and test_triton.py execute the GPU's kernels, on cases small enough for that.
    """
    params = []
    program = to_program(EDSR(2, 1, 4, 1))
    for name in ORDER:
        backend = get_backend(name)
        if DEVICE.type == "cpu" and name in ("cuda", "triton"):
            continue
        reason = backend.unavailable() or backend.supports(program, DEVICE, torch.float32)
        params.append(pytest.param(name, marks=[] if reason is None else pytest.mark.skip(reason=f"{name}: {reason}")))
    return params


@pytest.fixture(params=backends(), ids=lambda name: f"backend={name}")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
