"""Reading a TIFF file by windows: the strips or tiles that a window needs, and no more."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from tifffile import TiffFile, TiffPage

from ape_kernels.run.windows import Window
from ape_sr.errors import UserError

HELD_BYTES = 1 << 27  # of strips or tiles that were decoded, and may be needed again
SEGMENT_BYTES = 1 << 27  # of one that is compressed, at most


def why_not(path: Path, first_frame: bool = False) -> str | None:
    """Why a file cannot be read by windows, None if it can. first_frame: of several pages take the first."""
    try:
        with TiffFile(path) as file:
            page = cast(TiffPage, file.pages[0])
            smaller = [bool(cast(Any, other).tags.valueof(254, 0) & 1) for other in file.pages[1:]]
            if not all(smaller) and not first_frame:
                return f"it has {1 + smaller.count(False)} pages"
            return _why_not_page(page)
    except Exception:  # whatever damaged data leads tifffile to
        return "it is no TIFF file that can be read"


def _why_not_page(page: TiffPage) -> str | None:
    if page.photometric not in (0, 1, 2):
        return f"expected grey or RGB, got {getattr(page.photometric, 'name', page.photometric)}"
    if page.extrasamples or page.samplesperpixel != (3 if page.photometric == 2 else 1):
        return "expected grey or RGB without transparency or further channels"
    if page.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or page.bitspersample not in (8, 16):
        return f"expected 8 or 16 bits per channel, got {page.bitspersample} of {page.dtype}"
    if page.imagedepth != 1 or page.tags.valueof(274, 1) not in (0, 1):
        return "expected an upright image"
    size = _segment_bytes(page)
    if size > SEGMENT_BYTES and not _is_plain(page):
        return f"expected compressed strips of at most {SEGMENT_BYTES >> 20} MB, got {size >> 20} MB; write it in tiles"
    return None


class Source:
    """A file that `why_not` has nothing against, open until `close`.

    width, height, channels, dtype: of its image; channels are 1 for grey or 3 for RGB.
    page: as tifffile has it, for its tags.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = TiffFile(path)
        self.page = cast(TiffPage, self._file.pages[0])
        page = self.page
        self.width, self.height, self.channels = page.imagewidth, page.imagelength, page.samplesperpixel
        self.dtype = np.dtype(cast(Any, page.dtype)).newbyteorder("=")
        self._stored = self.dtype.newbyteorder(self._file.byteorder)
        self._planes = self.channels if page.planarconfig == 2 else 1
        tiled = page.is_tiled
        self._tall = page.tilelength if tiled else min(page.rowsperstrip or self.height, self.height)
        self._wide = page.tilewidth if tiled else self.width
        self._across, self._down = -(-self.width // self._wide), -(-self.height // self._tall)
        self._rows_alone = _segment_bytes(page) > SEGMENT_BYTES
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()
        self._descriptor = self._file.filehandle.fileno()  # read at places, whatever else reads the file

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, window: Window) -> np.ndarray:
        """Pixels uint8 or uint16 ``[H, W, channels]`` of a window. UserError for a file that is damaged there."""
        out = np.empty((window.height, window.width, self.channels), self.dtype)
        try:
            with self._lock:
                for row in range(window.top // self._tall, -(-window.bottom // self._tall)):
                    for column in range(window.left // self._wide, -(-window.right // self._wide)):
                        for plane in range(self._planes):
                            self._copy(row, column, plane, window, out)
        except UserError:
            raise
        except Exception as error:  # whatever damaged data leads the decoders to
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self._path}: cannot be read as an image: {reason}") from None
        return np.subtract(np.iinfo(self.dtype).max, out, out=out) if self.page.photometric == 0 else out

    def _copy(self, row: int, column: int, plane: int, window: Window, out: np.ndarray) -> None:
        """What a strip or tile has of a window."""
        number = (plane * self._down + row) * self._across + column
        first, left = row * self._tall, column * self._wide
        top, bottom = max(window.top, first), min(window.bottom, first + self._tall, self.height)
        begin, end = max(window.left, left), min(window.right, left + self._wide, self.width)
        if self._rows_alone:
            part = self._rows(number, top - first, bottom - first)[:, begin - left : end - left]
        else:
            part = self._segment(number)[top - first : bottom - first, begin - left : end - left]
        to = out[top - window.top : bottom - window.top, begin - window.left : end - window.left]
        to[..., plane : plane + part.shape[2]] = part

    def _segment(self, number: int) -> np.ndarray:
        """A strip or tile ``[H, W, C]``, of one channel where they are stored apart."""
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        offset, count = self.page.dataoffsets[number], self.page.databytecounts[number]
        data = self._bytes(offset, count) if count else None  # not written: as if it were empty
        pixels, _, shape = self.page.decode(data, number)
        if pixels is None:
            pixels = np.full(shape, self.page.nodata, self.dtype)
        pixels = pixels[0]
        self._decoded[number] = pixels
        while sum(each.nbytes for each in self._decoded.values()) > HELD_BYTES and len(self._decoded) > 1:
            self._decoded.popitem(last=False)
        return pixels

    def _rows(self, number: int, begin: int, end: int) -> np.ndarray:
        """Rows of a strip that is stored plainly."""
        channels = self.channels // self._planes
        size = self._wide * channels * self.dtype.itemsize
        data = self._bytes(self.page.dataoffsets[number] + begin * size, (end - begin) * size)
        return np.frombuffer(data, self._stored).reshape(end - begin, self._wide, channels)

    def _bytes(self, offset: int, count: int) -> bytes:
        parts: list[bytes] = []
        while count > 0:
            part = os.pread(self._descriptor, count, offset)  # at most 2 GB at once
            if not part:
                raise UserError(f"{self._path}: cannot be read as an image: it ends in the middle of its pixels")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)


def _is_plain(page: TiffPage) -> bool:
    """Whether rows of its strips can be read alone."""
    return page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled


def _segment_bytes(page: TiffPage) -> int:
    tall, wide = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip or page.imagelength, page.imagelength), page.imagewidth)
    )
    channels = 1 if page.planarconfig == 2 else page.samplesperpixel
    return tall * wide * channels * cast(Any, page.dtype).itemsize
