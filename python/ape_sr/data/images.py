"""Reading and writing image files, with one clear line for every fault."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ape_sr.errors import UserError
from ape_sr.files import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

NOTE = "ape-sr"  # key of the text in a PNG


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; UserError if it is no folder or holds none."""
    if not folder.is_dir():
        raise UserError(f"folder: expected an existing folder, got {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"folder: expected images ({', '.join(SUFFIXES)}) in {folder}, found none")
    return paths


def read_image(path: Path) -> np.ndarray:
    """Read any image file as uint8 RGB ``[H, W, 3]`` (grey and palette expanded, alpha dropped, turned upright)."""
    with _opened(path) as image:
        return to_rgb(image, str(path))


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as uint8 RGB ``[H, W, 3]``, as `read_image` does. UserError for more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: expected 8 bits per channel, got mode {image.mode}")
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Sides in pixels as the file's header has them, not decoded."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Generator[Image.Image, None, None]:
    """The opened image; UserError for whatever is wrong with it, also while it is read."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image file that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image: {error}") from None


def write_image(path: Path, image: np.ndarray, note: str | None = None) -> None:
    """Write uint8 ``[H, W, 3]``; the file appears whole or not at all. note: kept in a PNG, see `read_note`."""
    with atomic_path(path) as temporary:
        try:
            # quality: of JPEG and WebP; PNG, BMP and TIFF have none
            image_format = Image.registered_extensions()[path.suffix.lower()]
            options = {}
            if note is not None:
                options["pnginfo"] = PngInfo()
                options["pnginfo"].add_text(NOTE, note)
            Image.fromarray(image).save(temporary, format=image_format, quality=95, **options)
        except (OSError, ValueError) as error:  # ValueError: larger than the format allows
            raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def read_note(path: Path) -> str | None:
    """The note that `write_image` left in a PNG; None without one or without a readable picture."""
    try:
        with Image.open(path) as image:
            return image.info.get(NOTE)
    except (OSError, ValueError, SyntaxError):
        return None


def check_output_suffix(path: Path) -> None:
    """UserError unless `path` names an image format that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"output: expected a file name ending in {', '.join(SUFFIXES)}, got {path.name or os.fspath(path)}"
        )


def to_tensor(image: np.ndarray, rgb_range: float = 1.0) -> Tensor:
    """uint8 ``[H, W, 3]`` to float32 ``[1, 3, H, W]`` in [0, rgb_range]."""
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return planes.float() * (rgb_range / 255)


def to_image(tensor: Tensor, rgb_range: float = 1.0) -> np.ndarray:
    """Float ``[1, 3, H, W]`` in [0, rgb_range] to uint8 ``[H, W, 3]``, rounded and clamped."""
    levels = (tensor[0].float() * (255 / rgb_range)).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
