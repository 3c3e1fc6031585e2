"""Files at addresses: `Url` is a path that fsspec reaches, read and written by way of a local temporary file."""

from __future__ import annotations

import atexit
import os
import posixpath
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import IO, Any

from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.scratch import scratch_folder

# Where an upload is there whole or not at all. Elsewhere files are uploaded under another name, and renamed.
ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
HEAD_BYTES = 1 << 16  # read at once of a file of which only the start is needed
_numbers = count()


class Url(type(Path())):
    """An address such as ``s3://bucket/photos/a.png``, with a path's names and joins; nothing else of a local path.

    An empty part, as in ``a//b``, is left out.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def exists(self, **_: object) -> bool:
        """Whether there is a file or folder. UserError if that cannot be known."""
        return self._ask("exists")

    def is_dir(self, **_: object) -> bool:
        """Whether it is a folder, or the start of files' names. UserError if that cannot be known."""
        return self._ask("isdir")

    def is_file(self, **_: object) -> bool:
        """Whether there is a file. UserError if that cannot be known."""
        return self._ask("isfile")

    def identity(self) -> tuple[int, str]:
        """Bytes of the file, and what changes with its content. UserError if there is none."""
        with _faults(self, "read"):
            system, path = _system(self)
            info = system.info(path)
            changed = next(
                (info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), ""
            )
            return int(info["size"]), str(changed)

    def entries(self, recursive: bool) -> Iterator[tuple[Url, bool]]:
        """What is in the folder, by name, and whether it is a folder. recursive: sub folders' files in their place."""
        with _faults(self, "read"):
            system, top = _system(self)
            system.invalidate_cache()
            if recursive:
                infos = system.find(top, detail=True)
            else:
                infos = {info["name"]: info for info in system.ls(top, detail=True)}
        for name in sorted(infos):
            below = posixpath.relpath(name.rstrip("/"), top)
            if below != ".":
                yield self / below, infos[name]["type"] == "directory"

    def _ask(self, what: str) -> bool:
        with _faults(self, "read"):
            system, path = _system(self)
            return bool(getattr(system, what)(path))


def place(text: str) -> Path:
    """A path, or a `Url` where the text is an address other than ``file://``."""
    scheme, mark, rest = text.partition("://")
    if not mark or "/" in scheme:
        return Path(text)
    return Path(rest) if scheme in ("file", "local") else Url(text)


def exists(path: Path) -> bool:
    """Whether there is a file or folder; False, too, for a name that none can have."""
    return path.exists() if isinstance(path, Url) else os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Whether there is a folder, as `exists`."""
    return path.is_dir() if isinstance(path, Url) else os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Whether there is a file, as `exists`."""
    return path.is_file() if isinstance(path, Url) else os.path.isfile(path)


@contextmanager
def local_copy(path: Path) -> Generator[Path, None, None]:
    """A local file with what is in the file: the path itself, or a temporary one of a `Url`, which errors name."""
    if not isinstance(path, Url):
        yield path
        return
    temporary = _temporary(path)
    try:
        with _faults(path, "read"):
            system, source = _system(path)
            system.get_file(source, str(temporary))
        with _named(path, temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def local_target(path: Path) -> Generator[Path, None, None]:
    """A local file to write: the path itself, or a temporary one, which goes to the `Url` in the end."""
    if not isinstance(path, Url):
        yield path
        return
    temporary = _temporary(path)
    try:
        with _named(path, temporary):
            yield temporary
        with _faults(path, "written"):
            system, target = _system(path)
            if _scheme(path) in ATOMIC:
                system.put_file(str(temporary), target)
            else:
                folder, name = posixpath.split(target)
                part = posixpath.join(folder, f".{name}.part")
                system.makedirs(folder, exist_ok=True)
                system.put_file(str(temporary), part)
                system.mv(part, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened(path: Path) -> Generator[IO[bytes], None, None]:
    """A file to read the start of. OSError if there is none; UserError for other faults of a `Url`."""
    if not isinstance(path, Url):
        with open(path, "rb") as file:
            yield file
        return
    with _faults(path, "read", missing=False):
        system, name = _system(path)
        file = system.open(name, "rb", block_size=HEAD_BYTES)
    with file:
        yield file


def tidy() -> None:
    """Remove this process's temporary folder."""
    _stack.close()
    _folder.cache_clear()


_stack = ExitStack()
atexit.register(tidy)


@cache
def _folder() -> Path:
    return _stack.enter_context(scratch_folder("ape-sr-"))


def _temporary(path: Url) -> Path:
    """A name for a local file with this name's suffix."""
    return _folder() / f"{next(_numbers)}{path.suffix}"


def _scheme(path: Url) -> str:
    return str(path).partition("://")[0]


def _system(path: Url) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    if find_spec("fsspec") is None:
        raise UserError(f"{path}: needs fsspec; run: {how_to_install('fsspec')}")
    from fsspec.core import url_to_fs  # pyright: ignore[reportMissingTypeStubs]

    return url_to_fs(str(path))


@contextmanager
def _faults(path: Url, what: str, missing: bool = True) -> Generator[None, None, None]:
    """UserError, one line, for whatever a file system raises; they have no error in common. missing: for that too."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        if not missing:
            raise
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be {what}: {reason}") from None


@contextmanager
def _named(path: Url, temporary: Path) -> Generator[None, None, None]:
    """UserErrors name the address in place of the temporary file."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from None
