"""EXIF data: orientation taken out, the rest kept byte for byte. Damaged data never fails a picture."""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
TEXTS = {270: "ImageDescription", 271: "Make", 272: "Model", 306: "DateTime", 315: "Artist", 33432: "Copyright"}


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, from 1 (upright) to 8; 1 where there is none or it makes no sense."""
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever damaged data leads Pillow to
        return 1
    return value if 1 <= value <= 8 else 1


def exif_of(image: Image.Image) -> bytes | None:
    """The EXIF data of a loaded image as a TIFF structure, said to be upright; None without any that can be read."""
    try:
        raw = image.info.get("exif")
        if raw is None:
            exif = image.getexif()
            raw = _described(exif) if image.format == "TIFF" else exif.tobytes() if len(exif) else b""
        return _upright(raw.removeprefix(b"Exif\0\0")) or None
    except Exception:  # whatever damaged data leads Pillow to
        return None


def exif_ifds(exif: bytes) -> tuple[dict[int, str], dict[int, Any], dict[int, Any]]:
    """Texts, EXIF tags and GPS tags of a TIFF structure, for a file that keeps them among its own tags."""
    parsed = Image.Exif()
    parsed.load(exif)
    texts = {tag: str(parsed[tag]) for tag in TEXTS if tag in parsed}
    inside = dict(parsed.get_ifd(EXIF_IFD))
    if INTEROP_IFD in inside:  # a place in the old structure
        inside[INTEROP_IFD] = dict(parsed.get_ifd(INTEROP_IFD))
    return texts, inside, dict(parsed.get_ifd(GPS_IFD))


def _described(exif: Image.Exif) -> bytes:
    """Those tags of a TIFF file that describe the picture and not how it is stored."""
    kept = Image.Exif()
    for tag in TEXTS:
        if tag in exif:
            kept[tag] = exif[tag]
    for tag in (EXIF_IFD, GPS_IFD):
        if ifd := exif.get_ifd(tag):
            kept.get_ifd(tag).update(ifd)
            kept[tag] = kept.get_ifd(tag)
    return kept.tobytes() if len(kept) else b""


def _upright(data: bytes) -> bytes:
    """The same TIFF structure with orientation 1 in its first directory, if it has one. struct.error if it is cut."""
    if not data:
        return data
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    patched = bytearray(data)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag == ORIENTATION:
            struct.pack_into(f"{order}I" if kind == 4 else f"{order}H", patched, entry + 8, 1)
    return bytes(patched)
