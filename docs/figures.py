"""Makes the picture of the README: a detail of assets/photo.png, the same detail upscaled, and the exit map.

python docs/figures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ape_sr
from ape_kernels import PatchGrid
from ape_sr.exit_map import LEGEND, draw_exit_map

ROOT = Path(__file__).parents[1]
DETAIL = (105, 62, 205, 162)  # left, top, right, bottom, in pixels of the photo
SHRUNK = 2  # the map is drawn on a picture of half the size, so that its text is large enough
GAP = 8  # pixels between the panels


def main() -> None:
    """Write docs/figures/upscaled.webp."""
    upscaler = ape_sr.load("edsr-12x32-x4")
    with Image.open(ROOT / "assets" / "photo.png") as file:
        photo = file.convert("RGB")
    picture, report = upscaler.upscale(photo, return_report=True)
    scale = upscaler.scale
    box = tuple(side * scale for side in DETAIL)
    before = photo.crop(DETAIL).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.NEAREST)
    width, height = DETAIL[2] - DETAIL[0], DETAIL[3] - DETAIL[1]
    shrunk = picture.resize((picture.width // SHRUNK, picture.height // SHRUNK), Image.Resampling.LANCZOS)
    assert report.cell is not None  # these weights carry a fit
    grid = PatchGrid(photo.height, photo.width, report.cell, 0, scale // SHRUNK)
    exits = report.exit_index[0].numpy()
    exit_map = draw_exit_map(np.asarray(shrunk), exits, grid, len(report.patches_per_exit), report.share)
    right = Image.fromarray(exit_map)
    ImageDraw.Draw(right).rectangle([side // SHRUNK for side in box], outline="red", width=3)  # where the detail is
    panels = (
        _captioned(before, f"Before: {width} x {height} pixels\nof a photo of {photo.width} x {photo.height}"),
        _captioned(
            picture.crop(box),
            f"After: {width * scale} x {height * scale} pixels\nof {picture.width} x {picture.height}",
        ),
        right,
    )
    sheet = Image.new("RGB", (sum(p.width + GAP for p in panels) - GAP, panels[-1].height), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + GAP
    sheet.save(ROOT / "docs" / "figures" / "upscaled.webp", quality=90)
    print(f"docs/figures/upscaled.webp: {sheet.width}x{sheet.height}, {report}")


def _captioned(panel: Image.Image, text: str) -> Image.Image:
    """The panel with two lines of text below, in as much room as the map's legend takes."""
    sheet = Image.new("RGB", (panel.width, panel.height + LEGEND), "white")
    sheet.paste(panel)
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(sheet).text((4, panel.height + 10), text, fill="black", font=font, spacing=8)
    return sheet


if __name__ == "__main__":
    main()
