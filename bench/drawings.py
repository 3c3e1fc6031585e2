"""Drawings to fit and to test networks on that were trained on drawings: flat and shaded shapes, lines, letters.

    python bench/drawings.py OUT --count 24              # to fit on
    python bench/drawings.py OUT --count 8 --first 1000  # others, to test on

Each seed gives one picture, always the same. They are written as PNG.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (2048, 1280)  # pixels of a picture, width and height
FINER = 2  # drawn at so many times the size, then reduced: edges are smooth
Points = list[tuple[float, float]]


def draw(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 ``[H, W, 3]``: the drawing of a seed."""
    rng = np.random.default_rng(seed)
    width, height = (side * FINER for side in size)
    unit = height / 100  # lengths below are in hundredths of the height
    colours = _palette(rng)
    shaded = rng.random() * rng.integers(2)  # share of the areas that are shaded; half of the pictures are flat
    line = float(rng.uniform(0.1, 0.6)) * unit
    picture = _filled((width, height), colours, shaded, rng)
    for _ in range(rng.integers(8, 40)):
        points = _outline(rng, width, height, unit)
        mask = Image.new("L", picture.size)
        ImageDraw.Draw(mask).polygon(points, fill=255)
        box = mask.getbbox()
        if box is None:
            continue
        part = mask.crop(box)
        picture.paste(_filled(part.size, colours, shaded, rng), box[:2], part)
        if rng.random() < 0.4:  # a shadow with a hard edge, as cel animation has it
            dark = picture.crop(box).point(lambda value: value * 3 // 4)
            aside = Image.new("L", part.size)
            aside.paste(part, (int(part.width * rng.uniform(-0.6, 0.6)), int(part.height * rng.uniform(0.1, 0.5))))
            both = np.minimum(np.asarray(part), np.asarray(aside))
            picture.paste(dark, box[:2], Image.fromarray(both))
        if rng.random() < 0.7:
            colour = tuple(rng.integers(0, 60, 3).tolist())
            ImageDraw.Draw(picture).line([*points, points[0]], colour, round(line), joint="curve")
    _strands(picture, rng, unit, line)
    _letters(picture, rng, unit)
    if rng.random() < 0.3:  # a background out of focus
        edge = int(width * rng.uniform(0.2, 0.6))
        soft = picture.crop((0, 0, edge, height)).filter(ImageFilter.GaussianBlur(unit * rng.uniform(0.3, 2)))
        picture.paste(soft, (0, 0))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _palette(rng: np.random.Generator) -> np.ndarray:
    """uint8 ``[N, 3]``: some colours, white and a dark one among them."""
    colours = rng.integers(0, 256, (rng.integers(4, 12), 3))
    if rng.random() < 0.2:
        colours[:] = colours[:, :1]  # a picture in grey
    return np.concatenate([colours, [[255] * 3, [rng.integers(0, 40)] * 3]]).astype(np.uint8)


def _filled(size: tuple[int, int], colours: np.ndarray, shaded: float, rng: np.random.Generator) -> Image.Image:
    """An area of one colour, or shaded along a line or from a centre."""
    first, second = colours[rng.integers(len(colours), size=2)].astype(np.float32)
    if rng.random() >= shaded:
        return Image.new("RGB", size, tuple(first.astype(int).tolist()))
    x = np.linspace(-1, 1, size[0], dtype=np.float32)[None]
    y = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        along = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + 1) / 2
    else:
        along = np.hypot(x - np.float32(rng.uniform(-1, 1)), y - np.float32(rng.uniform(-1, 1))) / 2
    second = first + (second - first) * np.float32(rng.uniform(0.2, 1))
    mixed = first + along.clip(0, 1)[..., None] * (second - first)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _outline(rng: np.random.Generator, width: int, height: int, unit: float) -> Points:
    """A closed line: a smooth blob, or a polygon."""
    centre = rng.uniform(0, 1, 2) * (width, height)
    radius = float(np.exp(rng.uniform(np.log(2), np.log(45)))) * unit
    stretch = rng.uniform(0.3, 1, 2)
    smooth = rng.random() < 0.6
    angles = np.linspace(0, 2 * np.pi, 180, False) if smooth else np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    away = np.ones(len(angles))
    for wave in range(2, 6) if smooth else ():
        away += rng.normal() * 0.3 / wave * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    x = centre[0] + radius * stretch[0] * away * np.cos(angles)
    y = centre[1] + radius * stretch[1] * away * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _strands(picture: Image.Image, rng: np.random.Generator, unit: float, line: float) -> None:
    """Bundles of bent lines side by side, as hair or hatching is drawn."""
    pen = ImageDraw.Draw(picture)
    t = np.linspace(0, 1, 40)[:, None]
    for _ in range(rng.integers(2, 10)):
        ends = rng.uniform(0, 1, (3, 2)) * picture.size
        ends[1:] = ends[0] + (ends[1:] - ends[0]) * rng.uniform(0.1, 0.7)
        colour = tuple(rng.integers(0, 90, 3).tolist())
        step = rng.normal(size=2) * unit
        for number in range(rng.integers(1, 16)):
            bent = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * (ends[1] + step * number) + t**2 * ends[2]
            points = [tuple(point) for point in (bent + step * number).tolist()]
            pen.line(points, colour, max(1, round(line * rng.uniform(0.4, 1))), joint="curve")


def _letters(picture: Image.Image, rng: np.random.Generator, unit: float) -> None:
    """A few lines of letters, in half of the pictures."""
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 5) * rng.integers(2)):
        text = "".join(rng.choice(list(string.ascii_letters + "   "), rng.integers(4, 30)))
        place = tuple((rng.uniform(0, 0.8, 2) * picture.size).tolist())
        fill, border = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(2))
        font = ImageFont.load_default(size=unit * rng.uniform(2, 8))
        pen.text(place, text, fill, font, stroke_width=int(rng.integers(0, 2) * 0.3 * unit), stroke_fill=border)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Write drawings as PNG, one for each seed.")
    parser.add_argument("output", type=Path, help="folder to write to; made if needed")
    parser.add_argument("--count", type=int, default=24, help="number of pictures (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="pixels, width and height (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in range(args.first, args.first + args.count):
        Image.fromarray(draw(seed, tuple(args.size))).save(args.output / f"drawing{seed:05d}.png")


if __name__ == "__main__":
    main()
