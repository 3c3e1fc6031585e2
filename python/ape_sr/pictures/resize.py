"""Resizing pixels by Lanczos, in their own depth."""

from __future__ import annotations

import numpy as np
from PIL import Image


def lanczos(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 or uint16 ``[H, W, C]`` to ``[height, width, C]``, one channel after the other."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = np.empty((height, width, pixels.shape[2]), pixels.dtype)
    peak = np.iinfo(pixels.dtype).max
    for channel in range(pixels.shape[2]):
        plane = Image.fromarray(
            np.ascontiguousarray(pixels[..., channel], dtype=pixels.dtype if peak == 255 else np.float32)
        )
        resized[..., channel] = np.clip(
            np.rint(np.asarray(plane.resize((width, height), Image.Resampling.LANCZOS))), 0, peak
        )
    return resized
