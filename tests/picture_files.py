"""Files of pictures for tests, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ape_sr.pictures.read import read_file

WEIGHTS = "edsr-12x32-x2"  # trained ones: colours stay what they are


def pixels(path: Path) -> np.ndarray:
    """The only frame of a file, ``[H, W, C]``."""
    (frame,) = read_file(path).frames
    return frame.pixels


def opened(path: Path) -> Image.Image:
    """A file as Pillow reads it."""
    with Image.open(path) as image:
        image.load()
        return image


def deep(channels: int) -> np.ndarray:
    """uint16 ``[40, 64, channels]``, a slope with steps finer than 8 bits; alpha of 65535 but for a corner."""
    y, x = np.mgrid[0:40, 0:64]
    slope = (5000 + (y * 64 + x) // 4).astype(np.uint16)
    image = np.repeat(slope[..., None], channels, axis=2)
    if channels % 2 == 0:
        image[..., -1] = 65535
        image[:8, :8, -1] = 0
    return image
