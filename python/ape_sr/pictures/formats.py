"""The file formats, and what a file of each can hold. Nothing heavy is imported, as the help needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ape_sr.errors import UserError

Kind = Literal["still", "animation", "pages"]

READ_ONLY = (".heif", ".heic")  # with the package pillow-heif
AVIF = (".avif",)  # where Pillow was built with it


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    name: as in `--format`. suffixes: of its files, the usual one first. pillow: Pillow's name of it.
    side: largest width and height in pixels. alpha, grey, deep: whether it holds transparency, one channel, 16 bits.
    several: what several frames are in it, "still" if it holds one alone. quality: whether it is lossy.
    """

    name: str
    suffixes: tuple[str, ...]
    pillow: str
    side: int
    alpha: bool = False
    grey: bool = False
    deep: bool = False
    several: Kind = "still"
    quality: bool = False


FORMATS = (
    Format("png", (".png",), "PNG", 1_000_000, alpha=True, grey=True, deep=True, several="animation"),  # libpng's limit
    Format("jpg", (".jpg", ".jpeg", ".jfif"), "JPEG", 65_500, grey=True, quality=True),
    Format("webp", (".webp",), "WEBP", 16_383, alpha=True, several="animation", quality=True),
    Format("tif", (".tif", ".tiff"), "TIFF", 1_000_000, alpha=True, grey=True, deep=True, several="pages"),
    Format("bmp", (".bmp",), "BMP", 65_500, grey=True),
    Format("gif", (".gif",), "GIF", 65_535, alpha=True, grey=True, several="animation"),
    Format("avif", AVIF, "AVIF", 65_535, alpha=True, several="animation", quality=True),
)
FOLDER_FORMATS = ("png", "jpg", "webp", "tif")  # what `--format` offers

BY_SUFFIX = {suffix: form for form in FORMATS for suffix in form.suffixes}
BY_NAME = {form.name: form for form in FORMATS}
SUFFIXES = (*BY_SUFFIX, *READ_ONLY)  # of all files that count as pictures


def format_of(path: Path) -> Format:
    """The format in which a file of this name is written. UserError if there is none."""
    try:
        return BY_SUFFIX[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"output: expected a file name ending in {', '.join(BY_SUFFIX)}, got {path.name or path}"
        ) from None


def check_fits(path: Path, form: Format, width: int, height: int) -> None:
    """UserError if the format cannot hold a picture of this size in pixels."""
    if max(width, height) > form.side:
        raise UserError(
            f"{path}: cannot be written: {form.name} holds at most {form.side} pixels a side, "
            f"the result has {width}x{height}"
        )


def check_frames(path: Path, form: Format, kind: Kind, count: int) -> None:
    """UserError if the format cannot hold several frames of this kind."""
    if kind not in ("still", form.several):
        what = "frames" if kind == "animation" else "pages"
        holders = ", ".join(other.name for other in FORMATS if other.several == kind)
        raise UserError(
            f"{path}: cannot be written: {form.name} cannot hold the {count} {what} of the input; "
            f"give a name or --format of {holders}, or --first-frame"
        )
