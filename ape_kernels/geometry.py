"""Patch geometry: how an image is cut into overlapping patches and blended back together. Nothing is executed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Blend = Literal["linear", "average"]
BLENDS = ("linear", "average")
PATCH_SIZE = 48  # where no other is asked for


class AxisBlend(NamedTuple):
    """Which patches cover each output pixel of one axis, and with what weight.

    index: int32 ``[K, 2, size]``: patch number along the axis, then the pixel inside that patch.
    weight: float32 ``[K, size]``: sums to 1 over K; 0 where fewer than K patches cover the pixel.
    """

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.index, which nobody calls here
    weight: Tensor


class Band(NamedTuple):
    """Some rows of patches, and the picture rows that are complete once they are there.

    first, stop: the rows of patches to be computed. kept_rows: how many patch rows right before these reach into the
    band. keep_rows: how many, of all these, the next band will need. begin, end: rows of the merged picture.
    """

    first: int
    stop: int
    kept_rows: int
    keep_rows: int
    begin: int
    end: int

    @property
    def patch_rows(self) -> int:
        """How many rows of patches the band is merged from."""
        return self.kept_rows + self.stop - self.first


@dataclass(frozen=True)
class PatchGrid:
    """Cuts ``height`` x ``width`` images into patches that cover every pixel.

    Patches start every ``patch_size - overlap`` pixels; the last of an axis is moved back so that it
    ends with the image. An axis shorter than `patch_size` has one patch of its own length.

    patch_size, overlap: low-resolution pixels, 0 <= overlap < patch_size.
    scale: from patches to merged image. blend: "linear" ramps across overlaps, "average" weighs all
    covering patches alike.

    Raises ValueError for sizes outside these ranges.
    """

    height: int
    width: int
    patch_size: int = PATCH_SIZE
    overlap: int = 2
    scale: int = 1
    blend: Blend = "linear"

    def __post_init__(self) -> None:
        check_patch_size(self.patch_size, self.overlap)
        check_blend(self.blend)
        if self.height < 1 or self.width < 1:
            raise ValueError(f"image: expected at least 1x1 pixels, got {self.width}x{self.height}")

    @cached_property
    def row_starts(self) -> tuple[int, ...]:
        """First image row of each row of patches."""
        return _starts(self.height, self.patch_size, self.overlap)

    @cached_property
    def column_starts(self) -> tuple[int, ...]:
        """First image column of each column of patches."""
        return _starts(self.width, self.patch_size, self.overlap)

    @property
    def shape(self) -> tuple[int, int]:
        """Patches along (height, width)."""
        return len(self.row_starts), len(self.column_starts)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of every patch."""
        return min(self.patch_size, self.height), min(self.patch_size, self.width)

    @cached_property
    def row_blend(self) -> AxisBlend:
        """How rows of the merged image are put together."""
        return _axis_blend(self.row_starts, self.patch_shape[0], self.height, self.scale, self.blend)

    @cached_property
    def column_blend(self) -> AxisBlend:
        """How columns of the merged image are put together."""
        return _axis_blend(self.column_starts, self.patch_shape[1], self.width, self.scale, self.blend)

    def bands(self, step: int) -> Iterator[Band]:
        """The grid in bands of `step` rows of patches, at least 1; together they give every picture row once."""
        starts, size, begin, kept = self.row_starts, self.patch_shape[0], 0, 0
        for first in range(0, len(starts), step):
            stop = min(first + step, len(starts))
            end = self.height if stop == len(starts) else starts[stop]
            keep = sum(start + size > end for start in starts[:stop]) if end < self.height else 0
            yield Band(first, stop, kept, keep, begin * self.scale, end * self.scale)
            begin, kept = end, keep


@lru_cache(maxsize=32)
def patch_grid(height: int, width: int, patch_size: int, overlap: int, scale: int, blend: Blend) -> PatchGrid:
    """A cached `PatchGrid`: its tables are made once for images of one size."""
    return PatchGrid(height, width, patch_size, overlap, scale, blend)


def patch_count(size: int, patch_size: int, overlap: int) -> int:
    """Patches along an axis of `size` pixels."""
    return 1 if size <= patch_size else (size - overlap - 1) // (patch_size - overlap) + 1


def cells_of(height: int, width: int, cell: int) -> tuple[int, int]:
    """Rows and columns of cells of an image; the last ones are cut off by its edge."""
    return -(-height // cell), -(-width // cell)


def folded_geometry(patch_size: int, overlap: int, factor: int) -> tuple[int, int]:
    """Patch size and overlap in squares of factor x factor pixels: the size rounded down, the overlap up."""
    if factor == 1:
        return patch_size, overlap
    patch_size = max(1, patch_size // factor)
    return patch_size, min(-(-overlap // factor), patch_size - 1)


def check_patch_size(patch_size: int, overlap: int) -> None:
    """ValueError unless 0 <= overlap < patch_size."""
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f"patch_size: expected a whole number of at least 1, got {patch_size!r}")
    if not isinstance(overlap, int) or not 0 <= overlap < patch_size:
        raise ValueError(
            f"overlap: expected a whole number from 0 to patch_size - 1 = {patch_size - 1}, got {overlap!r}"
        )


def check_blend(blend: str) -> None:
    """ValueError unless `blend` is known."""
    if blend not in BLENDS:
        raise ValueError(f"blend: expected one of {', '.join(BLENDS)}, got {blend!r}")


def _starts(size: int, patch: int, overlap: int) -> tuple[int, ...]:
    if size <= patch:
        return (0,)
    regular = range(0, size - patch, patch - overlap)
    return (*regular, size - patch)


def _axis_blend(starts: tuple[int, ...], patch: int, size: int, scale: int, blend: Blend) -> AxisBlend:
    length = patch * scale
    raw = np.zeros((len(starts), size * scale))
    pixel = np.arange(length) + 0.5
    for i, start in enumerate(starts):
        ramp = np.ones(length)
        if blend == "linear":
            if i > 0:
                ramp = np.minimum(ramp, pixel / ((starts[i - 1] + patch - start) * scale or 1))
            if i + 1 < len(starts):
                ramp = np.minimum(ramp, (length - pixel) / ((start + patch - starts[i + 1]) * scale or 1))
        raw[i, start * scale : start * scale + length] = ramp
    weight = raw / raw.sum(axis=0)
    covering = int((weight > 0).sum(axis=0).max())
    # the covering patches of a pixel are consecutive: take `covering` of them from the first on
    first = np.minimum((weight > 0).argmax(axis=0), len(starts) - covering)
    patches = first + np.arange(covering)[:, None]
    inside = np.arange(size * scale) - np.asarray(starts)[patches] * scale
    chosen = np.take_along_axis(weight, patches, axis=0)
    index = np.stack([patches, inside.clip(0, length - 1)], axis=1)
    return AxisBlend(torch.from_numpy(index.astype(np.int32)), torch.from_numpy(chosen.astype(np.float32)))
