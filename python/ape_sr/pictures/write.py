"""Writing picture files with what they carry; a file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.pictures.colour import fitting_profile, on_white, to_8_bits, to_srgb
from ape_sr.pictures.formats import Format, check_fits, format_of
from ape_sr.pictures.frames import Carried, Frame
from ape_sr.pictures.notes import KEY, as_text, as_xmp
from ape_sr.pictures.png import write_png
from ape_sr.pictures.tiff_write import write_tiff

QUALITY = 95
LONGEST_JPEG_SEGMENT = 65_000


def write_picture(
    path: Path,
    frames: Sequence[Frame],
    carried: Carried | None = None,
    *,
    note: str | None = None,
    quality: int | None = None,
    threads: Executor | None = None,
) -> list[str]:
    """Write one frame or several in the format of the file's name; returns in words what the format could not hold.

    Transparency is laid on white where there is none, 16 bits are rounded to 8. note: see `read_note`.
    quality: from 1 to 100, of lossy formats. threads: what compresses PNG; the calling thread alone without.
    """
    form, carried = format_of(path), carried or Carried()
    height, width = frames[0].pixels.shape[:2]
    check_fits(path, form, width, height)
    fitted, lost = [], list[str]()
    for frame in frames:
        pixels, words = fit(frame.pixels, form, deep=len(frames) == 1 or form.several == "pages")
        fitted.append(Frame(pixels, frame.duration))
        lost = words
    icc = fitting_profile(carried.icc, frames[0].pixels.shape[2])
    with atomic_path(path) as temporary:
        try:
            if form.name == "png" and len(fitted) == 1:
                with open(temporary, "wb") as file:
                    texts = {} if note is None else {KEY: note}
                    write_png(file, fitted[0].pixels, icc=icc, exif=carried.exif, texts=texts, threads=threads)
            elif form.name == "tif":
                write_tiff(temporary, fitted, icc, carried.exif, None if note is None else as_text(note))
            else:
                _save(temporary, form, fitted, icc, carried, note, quality or QUALITY)
        except MemoryError:
            raise UserError(f"{path}: too large for the memory there is") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return lost


def fit(pixels: np.ndarray, form: Format, deep: bool = True) -> tuple[np.ndarray, list[str]]:
    """Pixels as the format holds them, and in words what that cost. deep: whether 16 bits are possible at all here."""
    words: list[str] = []
    if pixels.itemsize == 2 and not (form.deep and deep):
        pixels = to_8_bits(pixels)
        words.append(f"8 bits per channel, as {form.name} has no more")
    if pixels.shape[2] in (2, 4) and not form.alpha:
        pixels = on_white(pixels)
        words.append("transparency laid on white")
    return pixels, words


def _save(
    path: Path,
    form: Format,
    frames: Sequence[Frame],
    icc: bytes | None,
    carried: Carried,
    note: str | None,
    quality: int,
) -> None:
    """Write with Pillow."""
    images = [_image(frame.pixels, form, icc) for frame in frames]
    if not form.grey and frames[0].pixels.shape[2] < 3:
        icc = None  # of grey; `_image` followed it
    options: dict[str, Any] = {"quality": quality} if form.quality else {}
    if form.name not in ("gif", "bmp"):
        options["icc_profile"] = icc
        if carried.exif is not None and not (form.name == "jpg" and len(carried.exif) > LONGEST_JPEG_SEGMENT):
            options["exif"] = b"Exif\0\0" + carried.exif
    if note is not None:
        if form.name in ("webp", "avif"):
            options["xmp"] = as_xmp(note)
        elif form.name in ("jpg", "gif"):
            options["comment"] = as_text(note).encode()
        elif form.name == "png":
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_text(KEY, note)
    if len(images) > 1:
        durations = [frame.duration for frame in frames]
        options |= {"save_all": True, "append_images": images[1:]}
        options["duration"] = durations if form.name == "png" else [round(duration) for duration in durations]
        plays = carried.plays
        if form.name != "gif":
            options["loop"] = plays
        elif plays != 1:  # counts repetitions; nothing is once
            options["loop"] = plays - 1 if plays else 0
    if form.name == "gif":
        options["disposal"] = 2 if images[0].mode == "RGBA" else 0
    images[0].save(path, format=form.pillow, **options)


def _image(pixels: np.ndarray, form: Format, icc: bytes | None) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if not form.grey and image.mode == "L":
        return to_srgb(image, fitting_profile(icc, 1))
    if not form.grey and image.mode == "LA":
        return image.convert("RGBA")
    if form.name == "gif" and image.mode == "LA":
        return image.convert("RGBA")
    if image.mode == "RGBA" and form.name == "gif" and image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return image
