"""What is in a file of an image or of a picture: pixels, and what it carries beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ape_sr.pictures.formats import Kind


@dataclass(frozen=True)
class Frame:
    """pixels: uint8 or uint16 ``[H, W, C]``, upright, C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    duration: milliseconds that it is shown, 0 for what does not move.
    """

    pixels: np.ndarray
    duration: float = 0


@dataclass(frozen=True)
class Carried:
    """What goes into the result as it was.

    icc: colour profile. exif: a TIFF structure without the bytes "Exif" before it, its orientation set to upright.
    plays: how often an animation is shown, 0 for ever.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    plays: int = 0


@dataclass(frozen=True)
class ImageFile:
    """A file that was read. frames: in order, read on the way if there are several; count: how many the file has."""

    frames: Iterable[Frame]
    count: int = 1
    kind: Kind = "still"
    carried: Carried = Carried()
