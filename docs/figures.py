"""Makes the pictures of README.md and docs/how.md from assets/photo.jpg.

python docs/figures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ape_sr
from ape_kernels import PatchGrid
from ape_sr.exit_map import draw_exit_map

ROOT = Path(__file__).parents[1]
DETAIL = (500, 262, 628, 352)  # left, top, right, bottom, in pixels of the photo
SHOWN = 500  # width of the panels that explain the plan
GAP = 8  # pixels between the panels
CAPTION = 56  # pixels below a panel


def main() -> None:
    """Write docs/figures/upscaled.webp and plan.webp."""
    upscaler = ape_sr.load("edsr-12x32-x4")
    with Image.open(ROOT / "assets" / "photo.jpg") as file:
        photo = file.convert("RGB")
    picture, report = upscaler.upscale(photo, return_report=True)
    assert report.cell is not None  # these weights carry a fit
    exits = report.exit_index[0].numpy()
    grid = PatchGrid(photo.height, photo.width, report.cell, 0)  # on the photo: large text
    exit_map = Image.fromarray(
        draw_exit_map(np.asarray(photo), exits, grid, len(report.patches_per_exit), float(report.share))
    )
    write_upscaled(photo, picture, exit_map, upscaler.scale)
    print(report)


def write_upscaled(photo: Image.Image, picture: Image.Image, exit_map: Image.Image, scale: int) -> None:
    """A detail of the photo above the same detail of the picture, and the exit map beside them."""
    size = ((DETAIL[2] - DETAIL[0]) * scale, (DETAIL[3] - DETAIL[1]) * scale)
    before = photo.crop(DETAIL).resize(size, Image.Resampling.NEAREST)
    after = picture.crop(tuple(side * scale for side in DETAIL))
    exit_map = exit_map.copy()
    ImageDraw.Draw(exit_map).rectangle(DETAIL, outline="red", width=3)  # where the detail is
    panels = [
        _captioned(before, f"A detail of a photo of {photo.width} x {photo.height} pixels"),
        _captioned(after, f"The same of the picture of {picture.width} x {picture.height}"),
    ]
    sheet = Image.new("RGB", (size[0] + GAP + exit_map.width, exit_map.height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (0, number * (exit_map.height // 2)))
    sheet.paste(exit_map, (size[0] + GAP, 0))
    _save(sheet, "upscaled")


def _captioned(panel: Image.Image, *lines: str) -> Image.Image:
    """The panel with some text below."""
    sheet = Image.new("RGB", (panel.width, panel.height + CAPTION), "white")
    sheet.paste(panel)
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(sheet).text((4, panel.height + 6), "\n".join(lines), fill="black", font=font, spacing=6)
    return sheet


def _save(sheet: Image.Image, name: str) -> None:
    path = ROOT / "docs" / "figures" / f"{name}.webp"
    sheet.save(path, quality=88)
    print(f"{path.relative_to(ROOT)}: {sheet.width}x{sheet.height}, {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
