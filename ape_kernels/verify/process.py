"""A process with a time limit, killed with everything it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ape_kernels


@dataclass(frozen=True)
class Fault:
    """Why a process did not end well. late: it was killed at its time limit."""

    text: str
    late: bool = False


def why_none() -> str:
    """Why this interpreter cannot start another one of its kind; empty if it can."""
    executable = sys.executable or ""
    if getattr(sys, "frozen", False):
        return "a frozen program cannot start another Python"
    if not Path(executable).name.lower().startswith(("python", "pypy")):
        return f"sys.executable is {executable or 'not known'}, no Python to start"
    return ""


def run_module(arguments: list[str], folder: Path, limit_s: float) -> Fault | None:
    """Run ``python -m ape_kernels`` with `arguments` in `folder`; returns what went wrong, if anything did.

    It finds modules where this process does, and chooses no backend by verification itself. All that it and its
    descendants print goes to output.txt in `folder`. After `limit_s` seconds it is killed with its descendants, and
    also when waiting ends in an exception (Ctrl-C).
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
        return Fault(f"took more than {limit_s:.0f} s", late=True)
    finally:
        if process.poll() is None:
            _kill(process)
    if code < 0:
        return Fault(f"crashed: {signal.Signals(-code).name}")
    return Fault(f"ended with status {code}: {_last_line(output)}") if code else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it: it is not waited for
        process.wait(5)


def _search_path() -> str:
    """`sys.path` of this process, this package first; absolute, because the other one runs in another folder."""
    entries = [Path(ape_kernels.__file__).parent.parent, *(entry for entry in sys.path if entry)]
    return os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in entries))


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing printed"
