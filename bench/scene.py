"""Draws a giant picture, of which no more than a tile is in memory: what docs/scale.md measures.

    python bench/scene.py scene.tif --width 30000 --height 20000

Every tile is flat ground with flat shapes and lines on it, and one in six a part of assets/photo.jpg. A size gives one
picture, always the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
TILE = 1024  # pixels of a side
PHOTOS = 6  # one tile in so many is a part of the photograph


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Draw a giant TIFF file.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=30000, help="pixels (%(default)s)")
    parser.add_argument("--height", type=int, default=20000, help="pixels (%(default)s)")
    args = parser.parse_args()
    tifffile.imwrite(
        args.output,
        tiles(args.width, args.height),
        shape=(args.height, args.width, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
    )


def tiles(width: int, height: int) -> Iterator[np.ndarray]:
    """uint8 ``[TILE, TILE, 3]``, row by row; those at the right and lower edges reach over it."""
    photo = Image.open(ROOT / "assets" / "photo.jpg").convert("RGB")
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield np.asarray(_tile(np.random.default_rng((top, left)), photo))


def _tile(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    if rng.integers(PHOTOS) == 0:
        size = min(photo.size)
        left, top = rng.integers(photo.width - size + 1), rng.integers(photo.height - size + 1)
        part = photo.crop((left, top, left + size, top + size))
        return part.resize((TILE, TILE), Image.Resampling.BICUBIC)
    tile = Image.new("RGB", (TILE, TILE), _colour(rng))
    canvas = ImageDraw.Draw(tile)
    for _ in range(rng.integers(3, 12)):
        points = (rng.uniform(0, TILE, 2) + rng.normal(0, TILE / 8, (rng.integers(3, 7), 2))).flatten().tolist()
        canvas.polygon(points, fill=_colour(rng))
    for _ in range(rng.integers(3, 12)):
        canvas.line(rng.uniform(0, TILE, 4).tolist(), fill=_colour(rng), width=int(rng.integers(1, 8)))
    return tile


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


if __name__ == "__main__":
    main()
