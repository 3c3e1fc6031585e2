"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import replace

if os.environ.get("APE_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # for test_triton.py; it is read when kernels are defined
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the interpreter's products are too small for threads
os.environ.setdefault("APE_AUTO", "trust")  # only test_verify.py verifies; on a GPU the others would wait for it

import numpy as np
import pytest
import torch
from hypothesis import settings
from skimage import data
from support import DEVICE, ISAS

from ape_kernels import fit_exits, to_program
from ape_kernels.backends import ORDER, get_backend
from ape_kernels.native import core
from ape_sr.checkpoint import load_model
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.models import EDSR
from ape_sr.weights import shipped_weights

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    from triton.runtime.interpreter import interpreter_builder

    # Without a check for integer overflow at each addition it is almost twice as fast.
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has Ctrl-C ignored, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.backends.cudnn.allow_tf32 = False  # literal forwards are float32 too, and not TF32 as by default

settings.register_profile("ape", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ape")


def backends() -> list[pytest.param]:
    """The backends that run a network on the test device. One that cannot run is skipped with its reason.

    On the CPU, test_cuda.py and test_triton.py execute the kernels for GPUs, on cases that are small enough.
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


@pytest.fixture(scope="session")
def fitted_model() -> EDSR:
    """The shipped EDSR x2 with a fit to four photographs."""
    model = load_model(shipped_weights(2), with_fit=False).to(DEVICE)
    pictures = (data.coffee(), data.astronaut(), data.rocket(), data.chelsea())
    reduced = (bicubic_downscale(np.ascontiguousarray(picture[:300, :450]), 2) for picture in pictures)
    fit_exits(model, [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in reduced])
    return model


@pytest.fixture(params=ISAS, ids=lambda isa: f"isa={isa}")
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set that the native core uses during the test."""
    if request.param not in core().cpu_isas():
        pytest.skip(f"this CPU cannot run {request.param} kernels (able: {', '.join(core().cpu_isas())})")
    monkeypatch.setenv("APE_CPU_ISA", request.param)
    return request.param
