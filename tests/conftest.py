"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from support import DEVICE

from ape_kernels import to_program
from ape_kernels.backends import ORDER, get_backend
from ape_sr.models import EDSR

settings.register_profile("ape", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ape")


def backends() -> list[pytest.param]:
    """Backends to run a network on the test device; one that cannot is skipped with its reason."""
    params = []
    program = to_program(EDSR(2, 1, 4, 1))
    for name in ORDER:
        backend = get_backend(name)
        if not hasattr(backend, "run_patches"):
            continue
        reason = backend.unavailable() or backend.supports(program, DEVICE, torch.float32)
        params.append(pytest.param(name, marks=[] if reason is None else pytest.mark.skip(reason=f"{name}: {reason}")))
    return params


@pytest.fixture(params=backends(), ids=lambda name: f"backend={name}")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
