"""What this installation can run, as text for bug reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ape_kernels import __version__
from ape_kernels.backends import ORDER, get_backend
from ape_kernels.native import core, missing


def describe_environment() -> str:
    """Versions, CPU, devices, backends (with the reason why one cannot run) and the native build, one per line."""
    rows = [
        ("ape_kernels", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("triton", _package_version("triton")),
        ("numpy", np.__version__),
        ("cpu", f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"),
        ("devices", ", ".join(_devices())),
        *((f"backend {name}", get_backend(name).unavailable() or "available") for name in ORDER),
        *_native(),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _native() -> list[tuple[str, str]]:
    reason = missing()
    if reason is not None:
        return [("native core", reason)]
    native = core()
    build = ", ".join(f"{key} {value}" for key, value in native.build_info().items())
    return [
        ("native core", build),
        ("instruction sets", f"{', '.join(native.cpu_isas())} (in use: {native.cpu_isa()})"),
    ]


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux platform.processor() is empty or only the architecture
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus]
