"""Files that appear whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ape_sr.errors import UserError


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left; no other may be writing it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # there may be no such folder, or it is a file
            temporary.unlink(missing_ok=True)
