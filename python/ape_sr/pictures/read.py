"""Reading image files: Pillow reads what has 8 bits per channel, imagecodecs and tifffile what has 16."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.pictures.colour import fitting_profile, to_srgb
from ape_sr.pictures.exif import exif_of, orientation_of
from ape_sr.pictures.formats import READ_ONLY, Kind
from ape_sr.pictures.frames import Carried, Frame, ImageFile
from ape_sr.pictures.notes import find_note
from ape_sr.pictures.tiff_read import deep_pages, is_deep, read_deep_page
from ape_sr.places import opened

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # other formats' further frames are previews


def read_file(path: Path, *, max_pixels: int | None = None, first_frame: bool = False) -> ImageFile:
    """Read an image file with all that it carries.

    max_pixels: refuse more, before anything is decoded. first_frame: leave the others out.
    Raises UserError for whatever is wrong with the file, also while frames after the first are read.
    """
    with _faults(path):
        try:
            image = _open(path)
        except UnidentifiedImageError:
            places, icc = deep_pages(path)
            if not places:
                raise
            return _only_deep(path, places, icc, first_frame)
        try:
            width, height = image.size
            if max_pixels is not None and width * height > max_pixels:
                raise UserError(
                    f"{path}: {width}x{height} are more than {max_pixels} pixels; "
                    f"--max-pixels {width * height} allows them"
                )
            kind, places = _frames(image)
            animated = kind == "animation" and not first_frame
            first = _frame(path, image, places[0], animated)
            exif, plays = exif_of(image), _plays(image)
            icc = fitting_profile(image.info.get("icc_profile"), first.pixels.shape[2])
        except BaseException:
            image.close()
            raise
    frames: Any = [first]
    if first_frame or len(places) == 1:
        image.close()
    else:
        frames = _rest(path, image, first, places, animated)
    return ImageFile(frames, len(places), kind, Carried(icc, exif, plays))


def _only_deep(path: Path, places: list[int], icc: bytes | None, first_frame: bool) -> ImageFile:
    """The picture of a TIFF file that Pillow cannot read, such as grey with alpha in 16 bits."""
    first, *others = (Frame(_upright(*read_deep_page(path, place))) for place in places[: 1 if first_frame else None])
    icc = fitting_profile(icc, first.pixels.shape[2])
    return ImageFile([first, *others], len(places), "pages" if len(places) > 1 else "still", Carried(icc))


def pixels_of(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of a PIL image, turned upright, as `Frame` has them. UserError for a mode that cannot be upscaled.

    CMYK and other colours than RGB become sRGB, by the profile if there is one.
    """
    image.load()
    return _upright(_levels(image, name), orientation_of(image))


def image_size(path: Path) -> tuple[int, int]:
    """Sides in pixels as the file's header has them, not decoded."""
    with _faults(path), _open(path) as image:
        return image.size


def has_pages(path: Path) -> bool:
    """Whether a file holds several pages; False also if it cannot be read."""
    try:
        with _faults(path):
            try:
                with _open(path) as image:
                    return _frames(image)[0] == "pages"
            except UnidentifiedImageError:
                return len(deep_pages(path)[0]) > 1
    except UserError:
        return False


def read_note(path: Path) -> str | None:
    """The note that `write_picture` left; None without one or without a readable picture."""
    try:
        with opened(path) as file:
            return find_note(file)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None


@contextmanager
def _faults(path: Path) -> Generator[None, None, None]:
    """UserError, one line, for whatever can be wrong with a file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image file that can be read") from None
    except MemoryError:
        raise UserError(f"{path}: too large for the memory there is") from None
    except UserError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error, RuntimeError) as error:
        raise _unreadable(path, error) from None
    except Image.DecompressionBombError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror is not None:
        return UserError(f"{path}: cannot be read: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: cannot be read as an image: {reason}")


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() in READ_ONLY:
        try:
            from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(f"{path}: needs pillow-heif; run: {how_to_install('pillow-heif')}") from None
        register_heif_opener()
    return Image.open(path)


def _frames(image: Image.Image) -> tuple[Kind, list[int]]:
    """What the file's frames are, and where: thumbnails beside the pages of a TIFF do not count."""
    count = getattr(image, "n_frames", 1) if image.format in (*ANIMATED, "TIFF") else 1
    if count == 1:
        return "still", [0]
    if image.format == "TIFF":
        places = []
        for place in range(count):
            image.seek(place)
            if not cast(Any, image).tag_v2.get(254, 0) & 1:  # NewSubfileType: a smaller version of another
                places.append(place)
        return ("pages" if len(places) > 1 else "still"), places or [0]
    alone = image.info.get("default_image")  # of an APNG: shown where animations are not
    return "animation", list(range(1 if alone else 0, count))


def _rest(path: Path, image: Image.Image, first: Frame, places: list[int], animated: bool) -> Iterator[Frame]:
    yield first
    with image:
        for place in places[1:]:
            with _faults(path):
                frame = _frame(path, image, place, animated)
            yield frame


def _frame(path: Path, image: Image.Image, place: int, animated: bool) -> Frame:
    image.seek(place)
    pixels = None
    if image.format == "PNG" and _png_depth(path) == 16:
        if animated:
            raise UserError(f"{path}: expected 8 bits per channel in an animation, got 16; --first-frame takes one")
        pixels = _upright(_deep_png(path, image), orientation_of(image))
    elif image.format == "TIFF" and is_deep(image):
        pixels, orientation = read_deep_page(path, place)
        return Frame(_upright(pixels, orientation))
    if pixels is None:
        if animated:  # all frames alike, whatever each of them is stored as
            image.load()
            pixels = _upright(np.asarray(image.convert("RGBA")), orientation_of(image))
        else:
            pixels = pixels_of(image, str(path))
    return Frame(pixels, float(image.info.get("duration") or 0) if animated else 0)


def _levels(image: Image.Image, name: str) -> np.ndarray:
    """uint8 or uint16 ``[H, W, C]`` of a loaded image."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: expected 8 or 16 bits per channel, got mode {image.mode}")
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        return np.array(to_srgb(image, image.info.get("icc_profile")))
    clear = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        converted = image.convert("RGBA").convert("LA") if image.mode == "La" else image.convert("LA" if clear else "L")
        levels = np.array(converted)
        return levels if levels.ndim == 3 else levels[..., None]
    levels = np.array(image.convert("RGBA" if clear else "RGB"))
    if image.mode in ("P", "PA") and _is_grey(levels):
        return np.ascontiguousarray(levels[..., [0, 3] if clear else [0]])
    return levels


def _is_grey(levels: np.ndarray) -> bool:
    red, green, blue = (levels[..., channel] for channel in range(3))
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels ``[H, W, C]`` turned as the EXIF orientation, 1 to 8, says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _plays(image: Image.Image) -> int:
    loop = image.info.get("loop")
    if image.format == "GIF":  # says how often it is repeated, or nothing for once
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)


def _png_depth(path: Path) -> int:
    with open(path, "rb") as file:
        return file.read(25)[24]


def _deep_png(path: Path, image: Image.Image) -> np.ndarray:
    from imagecodecs import png_decode

    image.load()  # for what stands after the pixels
    pixels = np.asarray(png_decode(path.read_bytes()))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    key = image.info.get("transparency")
    if key is not None and pixels.shape[2] in (1, 3):
        alpha = np.where((pixels == np.array(key)).all(axis=2, keepdims=True), 0, 65535).astype(pixels.dtype)
        pixels = np.concatenate([pixels, alpha], axis=2)
    return pixels
