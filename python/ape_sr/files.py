"""Files that appear whole or not at all, also where several processes write them at once."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from ape_sr.errors import UserError

PART = re.compile(r"\.(.+)\.\d+\.part", re.DOTALL)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what processes that were killed while they wrote one of `paths` left beside it.

    A part file that another process holds is left alone.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        with suppress(OSError):  # there may be no such folder
            for entry in os.scandir(folder):
                match = PART.fullmatch(entry.name)
                if match is not None and match[1] in wanted:
                    _remove_unless_held(Path(entry.path))


@contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    The temporary file is there, empty, and locked until then: its lock says that it is no leftover.
    """
    try:
        with _part(path) as temporary:
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_writable(path: Path, name: str, *, folder: bool = False) -> None:
    """UserError, which begins with `name`, unless `atomic_path` can write there: before work that would be in vain.

    folder: `path` is a folder in which files are to be written. Nothing that was not there stays.
    """
    file = path / "test" if folder else path
    made: list[Path] = []
    try:
        if file.is_dir():
            raise UserError(f"{name}: expected a file name, got the folder {path}")
        made = [parent for parent in file.parents if not parent.exists()]
        with _part(file):
            pass
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written: {error.strerror or error}") from None
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _part(path: Path) -> Generator[Path, None, None]:
    """The temporary path of `atomic_path`; it is gone afterwards."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _create_held(temporary)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(lock)


def _create_held(path: Path) -> int:
    """Create a file and lock it; its descriptor. Once more if another process took it for a leftover in between."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # file systems without locks have none
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _remove_unless_held(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
