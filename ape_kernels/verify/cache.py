"""Verdicts on disk, so that not every process has to wait for a verification.

The key of a verdict is everything that the verdict depends on. A hash of the key names the file, and the file holds the
key as well. A damaged file, or a file with another key, counts as missing. A verdict that is not settled (no memory, no
time, no room on the disk) counts for one hour.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import ape_kernels
from ape_kernels.verify.signature import Json
from ape_kernels.verify.task import Verdict

RETRY_S = 3600.0
POLL_S = 0.1


def folder() -> Path:
    """The folder of the verdicts: APE_CACHE, or ape_kernels in the user's cache folder. It may not exist yet."""
    if wish := os.environ.get("APE_CACHE"):
        return Path(wish)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ape_kernels"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ape_kernels"


def name_of(key: Json) -> str:
    """The name of the verdict's file, without suffix."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def read(key: Json) -> Verdict | None:
    """The stored verdict for `key`, or None."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        kept = json.loads((folder() / f"{name_of(key)}.json").read_text())
        verdict = Verdict.from_json(kept["verdict"])
        fresh = verdict.settled or 0 <= time.time() - kept["made"] < RETRY_S
        if kept["key"] == key and fresh:
            return verdict
    return None


def write(key: Json, verdict: Verdict) -> None:
    """Store a verdict as a whole file or not at all. Does nothing if the folder cannot be written."""
    with contextlib.suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=folder(), suffix=".partial")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"key": key, "made": time.time(), "verdict": verdict.as_json()}, file)
            os.replace(partial, folder() / f"{name_of(key)}.json")
        except BaseException:
            os.unlink(partial)
            raise


@contextlib.contextmanager
def alone(key: Json, limit_s: float) -> Generator[None, None, None]:
    """In this context no other process verifies the same key.

    Waits for another process that does, up to `limit_s` seconds, and then goes on without the lock. Does not wait if
    the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError, RuntimeError):
            import fcntl  # not on every platform

            folder().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder() / f"{name_of(key)}.lock").open("w"))
            deadline = time.monotonic() + limit_s
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL_S)
        yield


@functools.cache
def own_source() -> str:
    """`source_hash` of this package, as its files were at the first call."""
    return source_hash(Path(ape_kernels.__file__).parent)


def source_hash(package: Path) -> str:
    """A hash of all Python files of a package and of its native core."""
    digest = hashlib.sha256()
    for path in sorted((*package.rglob("*.py"), *package.glob("_C*"))):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
