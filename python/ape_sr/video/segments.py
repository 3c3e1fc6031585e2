"""Finished parts of a video beside its output, until all are there."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType

from ape_sr.errors import UserError
from ape_sr.files import atomic_path, remove_leftovers

LENGTH = 100  # frames of all segments but the last


class Segments:
    """The folder of an output's segments, held by this process while the context lasts.

    note: all that the output depends on. Segments that were made of something else are removed.
    Raises UserError if the folder cannot be made, or another process holds it.
    """

    def __init__(self, output: Path, note: str) -> None:
        self._output, self._note = output, note
        self._folder = output.with_name(f".{output.name}.segments")

    def __enter__(self) -> Segments:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{self._output}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"output: {self._output} is being written by another process") from None
        except OSError:
            pass  # file systems without locks have none
        self._keep_own()
        remove_leftovers([self._output])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.finished:
            self.remove()
        os.close(self._lock)

    @property
    def finished(self) -> list[Path]:
        """The segments that are there, from the first on without a gap."""
        paths: list[Path] = []
        for number in count():
            if not self.path(number).is_file():
                return paths
            paths.append(self.path(number))
        raise AssertionError

    @property
    def frames(self) -> int:
        """How many are done. More than there are if all are: the last segment counts as a full one."""
        return len(self.finished) * LENGTH

    def marks_path(self, number: int) -> Path:
        """Of a file that says which frames of the source a segment was made of; see `ape_sr.video.reading.Mark`."""
        return self._folder / f"{number:06d}.json"

    def path(self, number: int) -> Path:
        """Of a segment, numbered from 0."""
        return self._folder / f"{number:06d}"

    def remove(self) -> None:
        """All of it, when the output is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep_own(self) -> None:
        """Remove what is of another note, and what a process that was killed left unfinished."""
        note, own = self._folder / "note.json", False
        with suppress(OSError, UnicodeDecodeError):
            own = note.read_text() == self._note
        for entry in self._folder.iterdir():
            if not own or entry.name.startswith("."):
                entry.unlink()
        if not own:
            with atomic_path(note) as temporary:
                temporary.write_text(self._note)
