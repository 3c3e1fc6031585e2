"""Options of `pytest bench`, and what its results say about the machine."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # reference.py


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ape-kernels")
    group.addoption("--patches", type=int, default=64, help="patches of 48x48 pixels per call")
    group.addoption("--rounds", type=int, default=5, help="samples per row")
    group.addoption("--threads", type=int, default=os.cpu_count() or 1, help="threads per row")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))


def _settings(config: pytest.Config) -> str:
    held = [f"{name}={os.environ[name]}" for name in ("APE_CPU_ISA", "ONEDNN_MAX_CPU_ISA") if name in os.environ]
    options = [f"{name} {config.getoption('--' + name)}" for name in ("patches", "rounds", "threads")]
    return ", ".join([*options, *held])


def _versions() -> str:
    found = []
    for package in ("torch", "triton", "openvino", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def pytest_report_header(config: pytest.Config) -> str:
    return f"bench: {_settings(config)}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info |= {"settings": _settings(config), "packages": _versions()}
