"""TIFF files of 16 bits per channel, which Pillow reads as 8 bits or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ape_sr.errors import UserError


def is_deep(image: Image.Image) -> bool:
    """Whether the page of a TIFF file at which Pillow stands has 16 bits per channel."""
    tags = cast(Any, image).tag_v2
    return 16 in np.atleast_1d(tags.get(258, 8)) and 1 in np.atleast_1d(tags.get(339, 1))


def deep_pages(path: Path) -> tuple[list[int], bytes | None]:
    """The pages and the profile of a file that Pillow cannot read, if it is a TIFF file of 16 bits per channel."""
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(path) as file:
            pages = [cast(Any, page) for page in file.pages]
            deep = all(page.dtype == np.uint16 for page in pages)
            return list(range(len(pages))) if deep else [], pages[0].tags.valueof(34675)
    except TiffFileError:
        return [], None


def read_deep_page(path: Path, place: int) -> tuple[np.ndarray, int]:
    """uint16 ``[H, W, C]`` of a page as it is stored, and the EXIF orientation."""
    from tifffile import TiffFile

    with TiffFile(path) as file:
        page = cast(Any, file.pages[place])
        pixels, photometric = np.asarray(page.asarray(maxworkers=1)), int(page.photometric)
        extra = [int(kind) for kind in page.extrasamples]
        orientation = page.tags.valueof(274, 1)
        planar = int(page.planarconfig) == 2 and pixels.ndim == 3
    if photometric not in (0, 1, 2):
        raise UserError(f"{path}: expected grey or RGB in 16 bits per channel, got {page.photometric.name}")
    pixels = np.moveaxis(pixels, 0, 2) if planar else pixels if pixels.ndim == 3 else pixels[..., None]
    colours = 3 if photometric == 2 else 1
    alpha = pixels[..., colours : colours + 1] if extra[:1] in ([1], [2]) else None
    pixels = pixels[..., :colours].astype(np.uint16)
    if photometric == 0:
        pixels = 65535 - pixels
    if alpha is not None:
        if extra[0] == 1:  # colours are multiplied by alpha
            pixels = np.minimum(np.rint(pixels / np.maximum(alpha, 1) * 65535.0), 65535).astype(np.uint16)
        pixels = np.concatenate([pixels, alpha.astype(np.uint16)], axis=2)
    return pixels, orientation if orientation in range(1, 9) else 1
