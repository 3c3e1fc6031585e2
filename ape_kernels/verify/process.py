"""A process with a time limit, which is killed together with everything that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import ape_kernels


@dataclass(frozen=True)
class Fault:
    """Why a process failed. passing: as in `Finding`. The system kills a process if there is no memory."""

    text: str
    passing: bool = False


def why_none() -> str:
    """Why this interpreter cannot start another Python; empty if it can."""
    executable = sys.executable or ""
    if getattr(sys, "frozen", False):
        return "a frozen program cannot start another Python"
    if not Path(executable).name.lower().startswith(("python", "pypy")):
        return f"sys.executable is {executable or 'not known'}, which is no Python that can be started"
    return ""


def run_module(arguments: list[str], folder: Path, limit_s: float) -> Fault | None:
    """Run ``python -m ape_kernels`` with `arguments` in `folder`. Returns what went wrong, or None.

    The new process finds modules in the same places as this one, and does not start verifications itself. Everything
    that it and its descendants print goes to output.txt in `folder`. It is killed together with its descendants after
    `limit_s` seconds, and also when an exception (Ctrl-C) ends the waiting.
    """
    output = folder / "output.txt"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "ape_kernels", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": _search_path(), "APE_AUTO": "off"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return Fault(f"took more than {limit_s:.0f} s", passing=True)
    finally:
        if process.poll() is None:
            _kill(process)
    if code < 0:
        return Fault(f"crashed: {signal.Signals(-code).name}", passing=-code == signal.SIGKILL)
    return Fault(f"ended with status {code}: {_last_line(output)}") if code else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep it from ending; do not wait forever
        process.wait(5)


def _search_path() -> str:
    """`sys.path` of this process, and before it the folder of this package unless the package is found there anyway.

    Not always: what stands in site-packages must not hide the standard library. Paths are absolute, because the other
    process has another folder.
    """
    entries = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path if entry))
    found = PathFinder.find_spec("ape_kernels", entries)
    if found is None or found.origin != ape_kernels.__file__:
        entries.insert(0, str(Path(ape_kernels.__file__).parent.parent))
    return os.pathsep.join(entries)


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing printed"
