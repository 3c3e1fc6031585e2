"""The cuda backend's kernel source built for the CPU (csrc/cuda/exec.h), in the place of the native core."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOST = Path("tests/kernels/host")  # the execution layer, beside this file
FLAGS = ("-std=c++17", "-march=native", "-Wall", "-Wextra", "-Werror", "-Wno-clobbered", "-fPIC", "-shared")


class Request(ctypes.Structure):
    """`Request` in csrc/cuda/request.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("table", "table_rows", "weights", "weight_count", "element", "stage")],
        *[(name, ctypes.c_int64) for name in ("input", "input_rows", "active", "exit_at", "output", "exit_index")],
        *[(name, ctypes.c_int64) for name in ("capacity", "leaves", "scratch", "queue", "blocks", "count")],
        *[(name, ctypes.c_int64) for name in ("height", "width")],
        ("boundary", ctypes.c_double),
    )


class ImageRequest(ctypes.Structure):
    """`ImageRequest` in csrc/cuda/image.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("table", "table_rows", "weights", "weight_count", "element", "sharing")],
        *[(name, ctypes.c_int64) for name in ("maps", "exit_at", "output", "images", "height", "width", "cell")],
        *[(name, ctypes.c_int64) for name in ("cell_rows", "cell_columns", "ring")],
    )


@dataclass
class HostLauncher:
    """Has the functions of the native core that the cuda backend calls.

    library: as `build` made it. blocks: at most, whatever the device.
    shared_kb: shared memory of a block, 227, 163 or 99.
    seed, chance, fault: `Run` in host/grid_host.h.
    Raises AssertionError for what the execution layer finds: races, accesses outside, deadlocks.
    """

    library: Path
    blocks: int = 3
    shared_kb: int = 227
    seed: int = 0
    chance: int = 0
    fault: str = ""
    sites: set[str] = field(default_factory=set)

    def cuda_plan(self, *, table, table_rows, weight_count, element, stage):
        result, message = (ctypes.c_int64 * 2)(), ctypes.create_string_buffer(256)
        arguments = [ctypes.c_int64(value) for value in (table, table_rows, weight_count, element, stage)]
        if ctypes.CDLL(str(self.library)).ape_host_plan(*arguments, result, message, ctypes.c_int64(256)):
            raise ValueError(message.value.decode())
        return *result, self.blocks

    def shared_bytes(self, half: bool, arch: int) -> int:
        """What a block of the kernel compiled for `arch` asks for."""
        return ctypes.CDLL(str(self.library)).ape_host_shared_bytes(half, arch)

    def image_shared_bytes(self, half: bool, arch: int) -> int:
        """The same of the kernel for images."""
        return ctypes.CDLL(str(self.library)).ape_host_image_shared_bytes(half, arch)

    def cuda_run_worker(self, **arguments):
        self._run("ape_host_run", Request, arguments)  # its blocks are among them

    def cuda_run_image(self, **arguments):
        self._run("ape_host_run_image", ImageRequest, arguments, ctypes.c_int64(self.blocks))

    def _run(self, function, kind, arguments, *more):
        assert arguments.pop("stream") == 0
        assert set(arguments) == {name for name, _ in kind._fields_}
        request = kind(**arguments)
        sites, message = ctypes.create_string_buffer(8192), ctypes.create_string_buffer(8192)
        errors = getattr(ctypes.CDLL(str(self.library)), function)(
            ctypes.byref(request),
            *more,
            self.shared_kb,
            self.seed,
            self.chance,
            self.fault.encode(),
            sites,
            message,
            ctypes.c_int64(8192),
        )
        if errors < 0:
            raise ValueError(message.value.decode())
        self.sites |= set(sites.value.decode().split("\n")) - {""}
        assert not errors, f"{errors} errors, the first: {message.value.decode()}"


@cache
def build(edits: tuple[tuple[str, str, str], ...] = (), quick: bool = False) -> Path:
    """The kernel as a shared library, built again only when its source has changed; skips where nothing can build it.

    edits: (file under csrc/cuda, text, replacement) to plant a mistake.
    quick: takes a seventh of the time to build and several times as long to run. It knows no shared memory below 227 KB
        in half precision, and rounds float32 differently.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the kernel for the CPU: looked for CXX, g++ and clang++")
    files = [*sorted((ROOT / "csrc").rglob("*.h")), *sorted((ROOT / HOST).iterdir())]
    sources = {path.relative_to(ROOT): path.read_text() for path in files}
    for name, text, replacement in edits:
        path = Path("csrc/cuda") / name
        assert sources[path].count(text) == 1, f"{name}: expected {text!r} once"
        sources[path] = sources[path].replace(text, replacement)
    flags = (*FLAGS, *(("-O0", "-DAPE_LARGEST_SHAPES_ALONE") if quick else ("-O2",)))
    stamp = hashlib.sha256(repr((compiler, flags, sorted(map(str, sources.items())))).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_host"
    library = folder / f"{stamp}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as copy:
            for path, text in sources.items():
                (Path(copy) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(copy) / path).write_text(text)
            made = Path(copy) / "made.so"
            includes = [f"-I{Path(copy) / place}" for place in ("csrc/cuda", HOST.parent)]
            command = [compiler, *flags, *includes, str(Path(copy) / HOST / "host.cpp"), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True)
            if "_Float16" in result.stderr or "ucontext.h" in result.stderr:
                pytest.skip(f"{compiler} lacks _Float16 or ucontext.h, which the kernel needs on the CPU")
            assert result.returncode == 0, result.stderr
            made.replace(library)
    return library
