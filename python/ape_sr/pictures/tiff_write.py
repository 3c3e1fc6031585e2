"""TIFF written by tifffile, which has 16 bits in colour; EXIF data is put in by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tifffile import TiffFile, TiffWriter

from ape_sr.pictures.exif import EXIF_IFD, GPS_IFD, INTEROP_IFD, exif_ifds
from ape_sr.pictures.frames import Frame

ROWS_BYTES = 1 << 20
BIG_BYTES = 4_000_000_000  # of pixels, beyond which the file is a BigTIFF
BIG_HEADER = b"II\x2b\0\x08\0\0\0" + bytes(8)
ASCII, LONG, LONG8 = 2, 4, 16


def write_tiff(path: Path, frames: Sequence[Frame], icc: bytes | None, exif: bytes | None, note: str | None) -> None:
    """Write pages of uint8 or uint16 pixels, deflated. exif: a TIFF structure, left out if it cannot be read."""
    wide = sum(frame.pixels.nbytes for frame in frames) > BIG_BYTES
    texts, directories = _parts_of(exif, wide)
    with TiffWriter(path, bigtiff=wide, byteorder="<") as file:
        for number, frame in enumerate(frames):
            pixels = frame.pixels
            channels = pixels.shape[2]
            extra: list[Any] = [(tag, ASCII, 0, text, True) for tag, text in texts.items()]
            if number == 0:  # tifffile writes no such tags: their neighbours, which become them below
                extra += [(tag + 1, LONG8 if wide else LONG, 1, 0, True) for tag in directories]
            file.write(
                pixels[..., 0] if channels == 1 else pixels,
                photometric="rgb" if channels >= 3 else "minisblack",
                planarconfig="contig" if channels > 1 else None,
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                compression="adobe_deflate",
                compressionargs={"level": 3},
                predictor=True,
                rowsperstrip=max(1, ROWS_BYTES // max(1, pixels[0].nbytes)),
                iccprofile=icc,
                software=note or False,
                metadata=None,
                extratags=extra,
            )
    if directories:
        _append_directories(path, directories, wide)


def _parts_of(exif: bytes | None, wide: bool) -> tuple[dict[int, str], dict[int, ImageFileDirectory_v2]]:
    """Texts that describe the picture, and the directories of EXIF and GPS tags. wide: for a BigTIFF."""
    if exif is None:
        return {}, {}
    try:
        texts, *tags = exif_ifds(exif)
        if wide:
            tags[0].pop(INTEROP_IFD, None)  # Pillow writes its place in 4 bytes
        directories = {}
        for place, values in zip((EXIF_IFD, GPS_IFD), tags, strict=True):
            directory = ImageFileDirectory_v2(BIG_HEADER) if wide else ImageFileDirectory_v2(prefix=b"II")
            for tag, value in values.items():
                directory[tag] = value
            directory.tobytes(8)
            if values:
                directories[place] = directory
        return {tag: text.encode("ascii", "replace").decode() for tag, text in texts.items()}, directories
    except Exception:  # whatever damaged data leads Pillow to
        return {}, {}


def _append_directories(path: Path, directories: dict[int, ImageFileDirectory_v2], wide: bool) -> None:
    """Write the directories behind the pages, and where they are into the first page's tags."""
    with open(path, "r+b") as file:
        places = {}
        for tag, directory in directories.items():
            file.seek(0, 2)
            file.write(b"\0" * (file.tell() % 2))
            places[tag] = file.tell()
            file.write(directory.tobytes(places[tag]))
    with TiffFile(path) as file:
        entries = {tag: cast(Any, file.pages[0]).tags[tag + 1].offset for tag in places}
    with open(path, "r+b") as file:
        for tag, entry in entries.items():
            file.seek(entry)
            file.write(struct.pack("<H", tag))
            file.seek(entry + (12 if wide else 8))
            file.write(struct.pack("<Q" if wide else "<I", places[tag]))
