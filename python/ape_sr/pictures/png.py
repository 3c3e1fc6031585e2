"""PNG written by bands of rows that are filtered and compressed beside each other.

Pillow and libpng compress in one thread: 10 times as long as this takes in one. docs/performance.md has the figures.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import BinaryIO

import numpy as np
from zlib_ng import zlib_ng

LEVEL = 3  # the fastest of zlib-ng's that stays within 15 % of zlib's level 6
BAND_BYTES = 1 << 20
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels
SUB, UP, AVERAGE = 1, 2, 3
ADLER = 65521


def write_png(
    file: BinaryIO,
    pixels: np.ndarray,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    texts: dict[str, str] | None = None,
    threads: Executor | None = None,
) -> None:
    """Write uint8 or uint16 ``[H, W, C]``, C from 1 to 4.

    exif: a TIFF structure. texts: latin-1, by key. threads: what compresses; the calling thread alone without.
    """
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, COLOUR_TYPES[channels], 0, 0, 0)
    _write_chunk(file, b"IHDR", header)
    if icc is not None:
        _write_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif is not None:
        _write_chunk(file, b"eXIf", exif)
    for key, text in (texts or {}).items():
        _write_chunk(file, b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1", "replace"))
    checksum, before = 1, b"\x78\x01"  # the header of a zlib stream
    for data, adler, length in _compressed(pixels, threads):
        checksum = _joined(checksum, adler, length)
        _write_chunk(file, b"IDAT", before + data)
        before = b""
    _write_chunk(file, b"IDAT", struct.pack(">I", checksum))
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib_ng.crc32(data, zlib_ng.crc32(kind))))


def _compressed(pixels: np.ndarray, threads: Executor | None) -> Iterator[tuple[bytes, int, int]]:
    """For every band in order: the deflated bytes, and the checksum and the length of what was deflated."""
    height = len(pixels)
    step = max(1, BAND_BYTES // max(1, pixels[0].nbytes))
    starts = range(0, height, step)
    if threads is None or len(starts) == 1:
        for start in starts:
            yield _compress(pixels, start, min(start + step, height))
        return
    waiting: deque[Future[tuple[bytes, int, int]]] = deque()
    try:
        for start in starts:
            waiting.append(threads.submit(_compress, pixels, start, min(start + step, height)))
            if len(waiting) > 8:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _compress(pixels: np.ndarray, start: int, end: int) -> tuple[bytes, int, int]:
    """The rows from `start` to `end` as blocks of a deflate stream that others may go before and follow."""
    step = pixels.shape[2] * pixels.itemsize
    rows = _bytes(pixels[max(0, start - 1) : end])
    if start == 0:
        rows = np.concatenate([np.zeros_like(rows[:1]), rows])
    filtered = _filter(rows, step, _best_filter(rows, step))
    stream = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15)
    data = stream.compress(filtered)
    data += stream.flush(zlib_ng.Z_FINISH if end == len(pixels) else zlib_ng.Z_SYNC_FLUSH)
    return data, zlib_ng.adler32(filtered), filtered.size


def _bytes(rows: np.ndarray) -> np.ndarray:
    """Rows as PNG has them, uint8 ``[rows, bytes]``, the higher byte of 16 bits first."""
    rows = np.ascontiguousarray(rows if rows.itemsize == 1 else rows.astype(">u2"))
    return rows.view(np.uint8).reshape(len(rows), -1)


def _best_filter(rows: np.ndarray, step: int) -> int:
    """The filter that leaves the smallest differences in some rows of the band."""
    some = rows[: max(2, len(rows) // 8)]
    costs = {
        kind: np.abs(_filter(some, step, kind)[:, 1:].view(np.int8).astype(np.int16)).sum()
        for kind in (SUB, UP, AVERAGE)
    }
    return min(costs, key=lambda kind: costs[kind])


def _filter(rows: np.ndarray, step: int, kind: int) -> np.ndarray:
    """All rows but the first minus what a filter of PNG predicts from the row above and the pixel before.

    The number of the filter stands before each row.
    """
    filtered = np.empty((len(rows) - 1, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = kind
    above, here, result = rows[:-1], rows[1:], filtered[:, 1:]
    if kind == UP:
        np.subtract(here, above, out=result)
    elif kind == SUB:
        result[:, :step] = here[:, :step]
        np.subtract(here[:, step:], here[:, :-step], out=result[:, step:])
    else:  # (a + b) // 2 without more bits
        np.subtract(here[:, :step], above[:, :step] >> 1, out=result[:, :step])
        left, up = here[:, :-step], above[:, step:]
        mean = left & up
        mean += (left ^ up) >> 1
        np.subtract(here[:, step:], mean, out=result[:, step:])
    return filtered


def _joined(first: int, second: int, length: int) -> int:
    """Adler-32 of two texts after each other; length: of the second."""
    low = ((first & 0xFFFF) + (second & 0xFFFF) - 1) % ADLER
    high = ((first >> 16) + (second >> 16) + length * ((first & 0xFFFF) - 1)) % ADLER
    return high << 16 | low
