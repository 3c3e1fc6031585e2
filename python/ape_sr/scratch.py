"""Temporary folders that are removed also after a process that was killed: by the next one that needs such a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

SHORT = 40  # characters of a folder in which Ray can still have its sockets, whose paths may have 107


@contextmanager
def scratch_folder(prefix: str) -> Generator[Path, None, None]:
    """An empty folder for this process, removed in the end. prefix: of its name, and of those that are looked after."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > SHORT:
        parent = Path("/tmp")
    for entry in parent.glob(f"{prefix}*"):
        _remove_unless_held(entry)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):  # if another process took it for a leftover in between, here or below
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_unless_held(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
