"""The result of a run by windows: a part file that grows by tiles, and a journal of the windows that are in it.

A window counts once its line is in the journal, whole; its tiles are on the disk by then. What stands behind the last
such window, in either file, is cut off when a run goes on. The finished file appears by a rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from tifffile import TiffFile, TiffPage, TiffWriter
from zlib_ng import zlib_ng

from ape_kernels.run.windows import Window
from ape_sr.errors import UserError
from ape_sr.giant.tags import Tag

LEVEL = 3  # of deflate
OFFSETS, COUNTS = 324, 325
FORMATS = {3: "H", 4: "I", 13: "I", 16: "Q"}  # of the dtypes that these tags may have


@dataclass(frozen=True)
class Layout:
    """Of a result. tile: its sides, a multiple of 16. dtype: "uint8" or "uint16"; channels: 1 or 3."""

    height: int
    width: int
    channels: int
    dtype: str
    tile: int

    @property
    def across(self) -> int:
        """Tiles beside each other."""
        return -(-self.width // self.tile)

    @property
    def count(self) -> int:
        """Tiles in all."""
        return self.across * -(-self.height // self.tile)


@dataclass(frozen=True)
class Entry:
    """A line of the journal. tiles: number, place in the file and bytes of each. sums: what a run adds up."""

    window: int
    tiles: list[list[int]]
    sums: list[float]


class Target:
    """The part file of `path`, held by this process until `close`.

    identity: all that the result depends on; a part file of another is begun anew. note, icc, tags: for the file.
    done: the windows that are in it, by number.

    Raises UserError for a file that cannot be written, or that another process holds.
    """

    def __init__(
        self, path: Path, layout: Layout, identity: str, *, note: str, icc: bytes | None, tags: Sequence[Tag]
    ) -> None:
        self._path, self._layout = path, layout
        self._part, self._journal = (path.with_name(f".{path.name}.windows.{end}") for end in ("part", "journal"))
        self._lock = Lock()
        self.done: dict[int, Entry] = {}
        try:
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._hold()
            start = os.fstat(self._file).st_size
            header, size = self._resumed(identity, start)
            if header is None:
                self._begin(note, icc, tags)
                self._pages = self._places()
                size = self._end = os.fstat(self._file).st_size
                line = json.dumps({"identity": identity, "layout": vars(layout), "begins": size}) + "\n"
                os.fsync(self._file)
                self._lines = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                os.write(self._lines, line.encode())
                os.fsync(self._lines)
            else:
                self._pages = self._places()
                self._end = max(
                    [header["begins"], *(at + count for each in self.done.values() for _, at, count in each.tiles)]
                )
                os.ftruncate(self._file, self._end)
                self._lines = os.open(self._journal, os.O_RDWR | os.O_CLOEXEC)
                os.ftruncate(self._lines, size)
                os.lseek(self._lines, 0, os.SEEK_END)
        except OSError as error:
            raise self._fault(error) from None

    def put(self, window: int, at: Window, tiles: Sequence[bytes], sums: list[float]) -> None:
        """Add a window of the picture, `at` multiples of the tiles, and its line. From any thread.

        tiles: see `packed`.
        """
        tile = self._layout.tile
        places = [(y, x) for y in range(0, at.height, tile) for x in range(0, at.width, tile)]
        with self._lock:
            lines: list[list[int]] = []
            try:
                end = self._end
                for (y, x), data in zip(places, tiles, strict=True):
                    number = (at.top + y) // tile * self._layout.across + (at.left + x) // tile
                    _write(self._file, data, end)
                    lines.append([number, end, len(data)])
                    end += len(data)
                os.fdatasync(self._file)
                entry = Entry(window, lines, sums)
                os.write(self._lines, (json.dumps(vars(entry)) + "\n").encode())
                os.fsync(self._lines)
            except OSError as error:
                raise self._fault(error) from None
            self._end = end
            self.done[window] = entry

    def finish(self) -> None:
        """All windows are done: say in the file where its tiles are, and give it its name."""
        found = {number: (at, count) for entry in self.done.values() for number, at, count in entry.tiles}
        tiles = [found[number] for number in range(self._layout.count)]
        try:
            for (place, form), numbers in zip(self._pages, zip(*tiles, strict=True), strict=True):
                _write(self._file, struct.pack(f"<{len(numbers)}{form}", *numbers), place)
            os.fsync(self._file)
            os.replace(self._part, self._path)
        except OSError as error:
            raise self._fault(error) from None
        with suppress(OSError):
            self._journal.unlink()

    def close(self) -> None:
        """Let go of the files; those in which no window is done are removed."""
        if not self.done:
            for path in (self._journal, self._part):
                with suppress(OSError):
                    path.unlink()
        os.close(self._lines)
        os.close(self._file)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"{self._path}: another process is writing it") from None
        except OSError:  # file systems without locks have none
            pass

    def _resumed(self, identity: str, size: int) -> tuple[dict[str, Any] | None, int]:
        """The first line of a journal of this identity, and its whole lines' bytes; `done` is what they say.

        size: of the part file. None without such a journal.
        """
        try:
            lines = self._journal.read_bytes().split(b"\n")[:-1]  # the last has no end
            header = json.loads(lines[0])
            if header["identity"] != identity or header["layout"] != vars(self._layout) or header["begins"] > size:
                return None, 0
        except (OSError, ValueError, LookupError, TypeError):
            return None, 0
        length = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                break
            if any(at + count > size for _, at, count in entry.tiles):
                break
            self.done[entry.window] = entry
            length += len(line) + 1
        return header, length

    def _begin(self, note: str, icc: bytes | None, tags: Sequence[Tag]) -> None:
        """Write the file without any tile."""
        layout = self._layout
        with TiffWriter(self._part, bigtiff=True, byteorder="<") as file:
            file.write(
                iter(repeat(b"", layout.count)),
                shape=(layout.height, layout.width, *([3] if layout.channels == 3 else [])),
                dtype=layout.dtype,
                photometric="rgb" if layout.channels == 3 else "minisblack",
                planarconfig="contig" if layout.channels == 3 else None,
                tile=(layout.tile, layout.tile),
                compression="adobe_deflate",
                predictor=True,
                iccprofile=icc,
                software=note,
                metadata=None,
                extratags=tags,
            )

    def _places(self) -> list[tuple[int, str]]:
        """Where the places and the bytes of the tiles stand, and how they are written."""
        with TiffFile(self._part) as file:
            tags = [cast(TiffPage, file.pages[0]).tags[code] for code in (OFFSETS, COUNTS)]
            return [(tag.valueoffset, FORMATS[int(tag.dtype)]) for tag in tags]

    def _fault(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror or error}")


def packed(pixels: np.ndarray, tile: int, over: Callable[..., Iterable[bytes]] = map) -> list[bytes]:
    """The tiles of a window's picture ``[H, W, C]``, row by row, as they stand in the file.

    over: `map`, or that of threads.
    """
    height, width = pixels.shape[:2]
    places = ((y, x) for y in range(0, height, tile) for x in range(0, width, tile))
    return list(over(_packed, (pixels[y : y + tile, x : x + tile] for y, x in places), repeat(tile)))


def _packed(pixels: np.ndarray, tile: int) -> bytes:
    """A tile, filled up with zeros at the edge: what each pixel adds to the one before it, deflated."""
    whole = np.zeros((tile, tile, pixels.shape[2]), pixels.dtype)
    height, width = pixels.shape[:2]
    whole[:height, :width] = pixels
    whole[:, 1:] -= whole[:, :-1].copy()
    return zlib_ng.compress(whole.tobytes(), LEVEL)


def _write(file: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, place)
        view, place = view[count:], place + count
