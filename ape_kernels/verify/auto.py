"""The choice that `backend="auto"` makes on a GPU: the fastest backend whose results were verified there.

When a program is packed there for the first time, the call waits until the candidates are verified in processes of
their own. A signature, a dtype and a patch size that were not seen before count as the first time. The verdict is kept
on disk and, as long as this process lives, in memory, so that the choice does not change between pictures. If anything
fails, torch runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

import ape_kernels
from ape_kernels.precision import matmul_precision
from ape_kernels.program import PatchProgram
from ape_kernels.verify import cache
from ape_kernels.verify.device import Device
from ape_kernels.verify.judge import verify
from ape_kernels.verify.process import why_none
from ape_kernels.verify.signature import Json, signature_of
from ape_kernels.verify.task import FALLBACK, LIMIT_S, PATCHES, Task, Verdict

MODES = ("verify", "trust", "off")
KERNEL_SETTINGS = ("APE_TRITON_AUTOTUNE", "TRITON_INTERPRET")  # environment variables that change a backend's kernels

_LOG = logging.getLogger("ape_kernels")
_LOCK = threading.Lock()
known: dict[str, Verdict] = {}  # the verdicts that this process has used, by the name of the key


def mode() -> str:
    """The value of APE_AUTO; "verify" if it is not set. Raises ValueError for a value that is not in `MODES`."""
    wish = os.environ.get("APE_AUTO", MODES[0])
    if wish not in MODES:
        raise ValueError(f"APE_AUTO: expected {', '.join(MODES[:-1])} or {MODES[-1]}, got {wish!r}")
    return wish


def fastest(
    candidates: Mapping[str, str],
    program: PatchProgram,
    device: torch.device,
    dtype: torch.dtype,
    patch_size: int,
    limit_s: float = LIMIT_S,
    operation: str = PATCHES,
) -> str:
    """Name of the fastest candidate that is right on `device`; "torch" if that cannot be found out.

    candidates: the backends that can run `program`, with torch among them, as names and modules.
    patch_size: side of the patches, or of the cells of images, as the program reads them, folded, in pixels.
    limit_s: seconds that the call waits at most if there is no verdict yet.
    operation: "patches" or "images".
    """
    if torch.compiler.is_compiling():  # no processes are started here; the next call that is not compiled may do so
        return FALLBACK
    begin = time.monotonic()
    try:
        task = make_task(program, device, dtype, patch_size, limit_s, operation)
        key = make_key(task, candidates)
    except Exception as error:
        _LOG.warning("auto takes torch: nothing can be verified: %s", error)
        return FALLBACK
    name = cache.name_of(key)
    if not _LOCK.acquire(timeout=limit_s):
        _LOG.warning("auto takes torch: another thread has been verifying for %.0f s", limit_s)
        return FALLBACK
    try:
        if name not in known:
            known[name], kept = find(key, task, candidates, begin)
            _tell(known[name], task, kept)
        return known[name].chosen
    finally:
        _LOCK.release()


def make_task(
    program: PatchProgram,
    device: torch.device,
    dtype: torch.dtype,
    patch_size: int,
    limit_s: float,
    operation: str = PATCHES,
) -> Task:
    """The task of verifying `program` for square patches. Raises ValueError for a program with `Module` steps."""
    return Task(
        signature_of(program),
        Device.of(device),
        str(dtype).removeprefix("torch."),
        (patch_size, patch_size),
        matmul_precision(),
        limit_s,
        operation,
    )


def make_key(task: Task, candidates: Mapping[str, str]) -> Json:
    """Everything that a verdict depends on, as JSON."""
    return {
        "operation": task.operation,
        "ape_kernels": ape_kernels.__version__,
        "source": cache.own_source(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "device": task.device.identity,
        "candidates": dict(candidates),
        "settings": {name: os.environ[name] for name in KERNEL_SETTINGS if name in os.environ},
        "signature": task.signature,
        "dtype": task.dtype,
        "patch": list(task.patch),
        "precision": task.precision,
    }


def find(key: Json, task: Task, candidates: Mapping[str, str], begin: float) -> tuple[Verdict, bool]:
    """The verdict, and whether it was stored already.

    Waits for another process that is verifying the same, within the task's limit, counted from `begin`
    (`time.monotonic`). Whatever fails is a verdict for torch, which says why.
    """
    try:
        if (kept := _kept(key, candidates)) is not None:
            return kept, True
        if reason := why_none():
            return Verdict(why_not=reason), False
        deadline = begin + task.limit_s
        with cache.alone(key, deadline - time.monotonic()):
            if (kept := _kept(key, candidates)) is not None:  # another process has just found it
                return kept, True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return Verdict(why_not=f"another process has been verifying for {task.limit_s:.0f} s"), False
            verdict = verify(task, candidates, left_s)
            cache.write(key, verdict)
            return verdict, False
    except Exception as error:
        return Verdict(why_not=f"the verification failed: {type(error).__name__}: {error}"), False


def _kept(key: Json, candidates: Mapping[str, str]) -> Verdict | None:
    verdict = cache.read(key)
    return verdict if verdict is not None and verdict.chosen in candidates else None


def _tell(verdict: Verdict, task: Task, kept: bool) -> None:
    """Log one line that says what was chosen and why. It is a warning unless all candidates are right."""
    clean = verdict.findings and all(finding.right for finding in verdict.findings)
    _LOG.log(
        logging.INFO if clean else logging.WARNING,
        "auto takes %s for %s %s of %dx%d on %s: %s%s",
        verdict.chosen,
        task.dtype,
        "patches" if task.operation == PATCHES else "images in cells",
        *task.patch,
        task.device.name,
        verdict,
        " (found before)" if kept else "",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
