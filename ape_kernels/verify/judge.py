"""Starts the candidates one after the other, compares their results and gives the verdict."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ape_kernels.verify.contract import Arrays, why_images_wrong, why_wrong
from ape_kernels.verify.process import run_module
from ape_kernels.verify.task import FALLBACK, IMAGES, REFERENCE, TASK, Finding, Task, Verdict


def verify(task: Task, candidates: Mapping[str, str], limit_s: float) -> Verdict:
    """The verdict on all candidates. Each runs in a process of its own.

    candidates: names and modules of the backends. "torch" must be among them; it runs first and makes the reference.
    limit_s: seconds for all candidates together. Each of the others may take an equal share of the time that torch has
    left, so that a backend that hangs does not use up the time of the next.
    """
    deadline = time.monotonic() + limit_s
    first, *others = sorted(candidates, key=lambda name: name != FALLBACK)
    with tempfile.TemporaryDirectory(prefix="ape-verify-", ignore_cleanup_errors=True) as name:
        court = _Court(task, Path(name), candidates)
        task.write(court.folder / TASK)
        findings = [court.examine(first, limit_s)]
        if not (court.folder / REFERENCE).exists():
            return Verdict((replace(findings[0], passing=True),))
        for i, backend in enumerate(others):
            left_s = max(0.0, deadline - time.monotonic())
            findings.append(court.examine(backend, left_s / (len(others) - i)))
    return Verdict(tuple(findings))


@dataclass(frozen=True)
class _Court:
    """A task, and the folder that its candidates write to."""

    task: Task
    folder: Path
    candidates: Mapping[str, str]

    def examine(self, backend: str, limit_s: float) -> Finding:
        """Run one candidate and compare its results with the reference."""
        module = self.candidates[backend]
        fault = run_module(["verify", "--candidate", module, "--folder", str(self.folder)], self.folder, limit_s)
        report = self.folder / f"{module}.json"
        if report.exists():
            return Finding(backend, **json.loads(report.read_text()))
        if fault is not None:
            return Finding(backend, fault.text, passing=fault.passing)
        if not (self.folder / f"{module}.npz").exists():
            return Finding(backend, "ended without results")
        results = self.arrays(f"{module}.npz")
        own = self.folder / f"{self.candidates[FALLBACK]}.npz"
        judged = why_images_wrong if self.task.operation == IMAGES else why_wrong
        reason = judged(
            self.arrays(REFERENCE), results, self.task.dtype, self.arrays(own.name) if own.exists() else None
        )
        return Finding(backend, reason) if reason else Finding(backend, milliseconds=float(results["milliseconds"]))

    def arrays(self, name: str) -> Arrays:
        """The arrays in one of the folder's files."""
        with np.load(self.folder / name) as file:
            return dict(file)
