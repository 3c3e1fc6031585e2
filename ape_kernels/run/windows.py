"""Parts of images, run as if the whole were there: bit for bit, on backends that run images in tiles.

A picture's pixel depends on a few pixels of the image around it, but in its last bits also on where the tiles lie that
computed it. So a window is cut from the image at a multiple of the tiles, and with so much around it that no tile which
matters is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ape_kernels import ops
from ape_kernels.packed import Packed
from ape_kernels.sharing import Share, receptive_field


class Window(NamedTuple):
    """A rectangle of an image, in low-resolution pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column beyond."""
        return self.left + self.width

    def scaled(self, scale: int) -> Window:
        """The same rectangle of a picture."""
        return Window(*(scale * side for side in self))


@dataclass(frozen=True)
class Windows:
    """How images are cut for one program.

    step: low-resolution pixels; windows begin and end at multiples of it, or at the image's edge.
    margin: pixels around a window that are run with it, so that its last bits do not depend on what lies beyond.
    exact: whether a window's bits are the whole image's; else they are to rounding.
    """

    step: int
    margin: int
    exact: bool

    @classmethod
    def of(cls, packed: Packed, cell: int = 1, ring: int = 0) -> Windows:
        """For plans in cells of `cell` pixels with such a ring. ValueError for a program that shares no maps."""
        if packed.sharing is None:
            raise ValueError("program: expected one that runs on shared feature maps")
        fold, tiling = packed.shape.fold, ops.tiling(packed.tensors, packed.backend)
        if tiling is None:
            return cls(math.lcm(fold, cell), fold * receptive_field(packed.table) + 2 * ring, False)
        bits = fold * receptive_field(packed.table, tiling.beyond) + ring
        margin = bits + ring + fold * (tiling.side + int(packed.sharing[:, Share.REACH].max()))
        return cls(math.lcm(fold * tiling.side, cell), margin, True)

    def around(self, wanted: Window, sides: Sequence[int]) -> Window:
        """What has to be run for `wanted`. sides: height and width of the image."""
        top, bottom = self._span(wanted.top, wanted.bottom, sides[0])
        left, right = self._span(wanted.left, wanted.right, sides[1])
        return Window(top, left, bottom - top, right - left)

    def _span(self, begin: int, end: int, side: int) -> tuple[int, int]:
        first = max(0, begin - self.margin) // self.step * self.step
        last = -(-(end + self.margin) // self.step) * self.step
        return first, min(last, side)
