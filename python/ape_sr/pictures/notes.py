"""The note in every result: what it was made from, and how. It tells results from inputs, and what is done already."""

from __future__ import annotations

import struct
from html import escape, unescape
from typing import IO, Any, cast

from PIL import Image

KEY = "ape-sr"
XMP_START, XMP_END = b"<ape:note>", b"</ape:note>"


def as_xmp(note: str) -> bytes:
    """The note as XMP, for formats that have no place for a text."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:ape="urn:ape-sr">'
        + XMP_START
        + escape(note, quote=False).encode()
        + XMP_END
        + b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def as_text(note: str) -> str:
    """The note with its key before it, for comments, which have none."""
    return f"{KEY} {note}"


def find_note(file: IO[bytes]) -> str | None:
    """The note in a picture file, None without one. Reads no pixels. OSError and others for a file that is damaged."""
    start = file.read(8)
    if start == b"\x89PNG\r\n\x1a\n":
        return _note_of_png(file)
    file.seek(0)
    if start[:2] in (b"II", b"MM"):
        return _note_of_text(_software(file))
    with Image.open(file) as image:
        xmp = image.info.get("xmp")
        if isinstance(xmp, bytes) and XMP_START in xmp:
            return unescape(xmp.partition(XMP_START)[2].partition(XMP_END)[0].decode())
        return _note_of_text(image.info.get("comment"))


def _note_of_text(text: object) -> str | None:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return text.removeprefix(f"{KEY} ") if isinstance(text, str) and text.startswith(f"{KEY} ") else None


def _software(source: IO[bytes]) -> object:
    """The tag of this name of a TIFF file."""
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(source) as file:
            return cast(Any, file.pages[0]).tags.valueof(305)
    except TiffFileError:
        return None


def _note_of_png(file: IO[bytes]) -> str | None:
    """The note in the chunks before the pixels. It is read without Pillow, which refuses large results."""
    wanted = KEY.encode() + b"\0"
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            return None
        if kind == b"tEXt":
            text = file.read(length)
            if text.startswith(wanted):
                return _whole(file, text[len(wanted) :])
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
    return None


def _whole(file: Any, text: bytes) -> str | None:
    """The text, if the file ends as a PNG does: one that was cut is no result."""
    file.seek(-12, 2)
    return text.decode("latin-1") if file.read(12) == b"\0\0\0\0IEND\xaeB`\x82" else None
