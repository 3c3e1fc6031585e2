"""Colours between modes and profiles."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}  # of a profile, by the number of channels


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """The image as RGB. icc: its own profile, followed where it can be."""
    if icc is not None:
        from PIL import ImageCms

        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or of another colour space than the image
            pass
    return image.convert("RGB")


def fitting_profile(icc: bytes | None, channels: int) -> bytes | None:
    """The profile if it is for pictures of so many channels, else None."""
    return icc if icc is not None and icc[16:20] == SPACES[channels] else None


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Grey or RGB ``[H, W, C]`` with alpha last, laid on white: ``[H, W, C - 1]``. A band of rows at a time."""
    peak = np.float32(np.iinfo(pixels.dtype).max)
    flat = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), pixels.dtype)
    for rows in bands(pixels):
        share = pixels[rows, :, -1:] / peak
        flat[rows] = np.rint(peak + (pixels[rows, :, :-1] - peak) * share)
    return flat


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 to uint8, rounded; 257 steps of 65535 make one of 255. A band of rows at a time."""
    levels = np.empty(pixels.shape, np.uint8)
    for rows in bands(pixels):
        levels[rows] = (pixels[rows].astype(np.uint32) + 128) // 257
    return levels


def bands(pixels: np.ndarray, size: int = 1 << 20) -> list[slice]:
    """Slices of rows, each of about `size` values."""
    step = max(1, size // max(1, pixels[0].size))
    return [slice(start, min(start + step, len(pixels))) for start in range(0, len(pixels), step)]
