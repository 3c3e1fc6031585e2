"""Pixels to the planes a network takes, and back; transparency beside the colours. NumPy alone: PyTorch's threads wait
in loops, which costs time where others work beside them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ape_sr.pictures.colour import bands

LUMA = (0.299, 0.587, 0.114)
REACH = 16  # pixels around what can be seen that get its colours: about as far as a network looks


def peak_of(dtype: np.dtype[Any]) -> int:
    """What white is: the largest whole number, or 1 of a float dtype."""
    return 1 if dtype.kind == "f" else np.iinfo(dtype).max


def to_planes(pixels: np.ndarray, rgb_range: float) -> np.ndarray:
    """uint8, uint16 or float ``[H, W, C]`` to float32 ``[1, 3, H, W]`` in [0, rgb_range]; C is 1, for grey, or 3."""
    factor = np.float32(rgb_range / peak_of(pixels.dtype))
    planes = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.multiply(pixels[..., channel % pixels.shape[2]], factor, out=planes[0, channel], dtype=np.float32)
    return planes


def from_planes(planes: np.ndarray, rgb_range: float, out: np.ndarray) -> None:
    """float32 ``[3, H, W]`` in [0, rgb_range], clamped, into uint8 or uint16 ``[H, W, C]``, rounded, or into floats.

    C is 3, or 1 for grey: the luma then, which has no colour. A band of rows at a time.
    """
    peak = np.float32(peak_of(out.dtype))
    factor = np.float32(peak / rgb_range)
    for rows in bands(planes[0], 1 << 17):  # stays in the cache
        levels = planes[:, rows] * factor
        if out.shape[2] == 1:
            levels = np.tensordot(np.array(LUMA, np.float32), levels, 1)[None]
        if out.dtype.kind != "f":
            np.rint(levels, out=levels)
        np.clip(levels, 0, peak, out=levels)
        for channel, plane in enumerate(levels):
            out[rows, :, channel] = plane


def cover_hidden(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours ``[H, W, C]`` where what alpha ``[H, W]`` hides has the colours beside it, so that none of it shows.

    Further away, where the network cannot tell, it has their mean: flat patches are the fastest.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    from scipy.ndimage import distance_transform_edt  # pyright: ignore[reportMissingTypeStubs]

    far, nearest = cast(Any, distance_transform_edt(hidden, return_indices=True))
    covered = colours[tuple(nearest)]
    mean = colours[~hidden].mean(axis=0, dtype=np.float64)
    covered[far > REACH] = mean if colours.dtype.kind == "f" else np.rint(mean)
    return covered


def bound(enlarged: np.ndarray, alpha: np.ndarray, scale: int) -> None:
    """Hold enlarged transparency ``[s * H, s * W]`` between the least and greatest of the 3x3 pixels around, in place.

    What was wholly opaque or wholly hidden stays so, and no edge overshoots.
    """
    height, width = alpha.shape
    padded = np.pad(alpha, 1, mode="edge")
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    low, high = np.minimum.reduce(around), np.maximum.reduce(around)
    for row in range(height):
        band = enlarged[row * scale : (row + 1) * scale]
        np.clip(band, np.repeat(low[row], scale), np.repeat(high[row], scale), out=band)
