"""Starts the candidates, one after the other, compares what they give, and gives the verdict."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ape_kernels.verify.contract import why_wrong
from ape_kernels.verify.process import run_module
from ape_kernels.verify.task import FALLBACK, REFERENCE, TASK, Finding, Task, Verdict


def verify(task: Task, candidates: Mapping[str, str], limit_s: float) -> Verdict:
    """What comes of all candidates, each run in a process of its own; at most `limit_s` seconds together.

    candidates: names, and the modules that are these backends. "torch" is among them and runs first: it makes the
    reference as well. Each may take an equal share of the time that is left, so that one that hangs leaves some.
    """
    deadline = time.monotonic() + limit_s
    order = sorted(candidates, key=lambda name: name != FALLBACK)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="ape-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        task.write(folder / TASK)
        for i, backend in enumerate(order):
            limit_s = max(0.0, deadline - time.monotonic()) / (len(order) - i)
            findings.append(_examine(task, folder, backend, candidates[backend], limit_s))
            if not (folder / REFERENCE).exists():
                findings[-1] = replace(findings[-1], passing=True)
                break
    return Verdict(tuple(findings))


def _examine(task: Task, folder: Path, backend: str, module: str, limit_s: float) -> Finding:
    """Run one candidate and compare."""
    fault = run_module(["verify", "--candidate", module, "--folder", str(folder)], folder, limit_s)
    report, results = folder / f"{module}.json", folder / f"{module}.npz"
    if report.exists():
        return Finding(backend, **json.loads(report.read_text()))
    if fault is not None:
        return Finding(backend, fault.text, passing=fault.late)
    with np.load(folder / REFERENCE) as reference, np.load(results) as got:
        reason = why_wrong(reference, got, task.dtype)
        milliseconds = float(got["milliseconds"])
    results.unlink()
    return Finding(backend, reason) if reason else Finding(backend, milliseconds=milliseconds)
