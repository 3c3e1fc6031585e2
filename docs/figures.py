"""Makes the pictures of README.md, docs/how.md and docs/video.md.

python docs/figures.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

import ape_sr
from ape_kernels import PatchGrid
from ape_kernels.plan import ExitFit, make_plan
from ape_sr.data.images import to_tensor
from ape_sr.exit_map import COLORMAP, colours_of, draw_exit_map
from ape_sr.models.base import pixel_range
from ape_sr.pictures.planes import to_planes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import video  # noqa: E402

DETAIL = (500, 262, 628, 352)  # left, top, right, bottom, in pixels of the photo
ASKED = 45.0  # dB, of the plan that is explained
GAP = 8  # pixels between the panels
CAPTION = 56  # pixels below a panel
SHOWN = 3  # frame of the clip


def main() -> None:
    """Write docs/figures/upscaled.webp, plan.webp and video.webp."""
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
    fit = upscaler.network.fit
    assert fit is not None
    write_plan(photo, fit, upscaler)
    write_video(fit, upscaler)


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


def write_plan(photo: Image.Image, fit: ExitFit, upscaler: ape_sr.Upscaler) -> None:
    """The photo, one statistic of its cells, what is predicted of interpolation and of the first exit, and the plan."""
    image = to_tensor(np.array(photo))
    statistics = torch.ops.ape_kernels.statistics(image, fit.cell, fit.value_range, "torch")
    predicted = fit.predict(statistics).fidelity[0].numpy()
    plan = make_plan(fit, upscaler.network.program, image, ASKED)
    names = ["interpolation", *(f"exit {exit_index}" for exit_index in range(fit.stages - 1)), "full depth"]
    colours = ListedColormap([*colours_of(fit.stages)[-1:], *colours_of(fit.stages)[:-1]])
    share = f"{float(plan.share):.0%} of all computation"
    strength = statistics[0, :, :, 0].numpy() * (20 / np.log(10))  # a natural logarithm of the root mean square
    figure = Figure(figsize=(11, 8.9), dpi=90, layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for axes, values, title in (
        (panels[0], strength, "1. Statistics, here how strong the Laplacian is (dB)"),
        (panels[1], predicted[..., 0], "2. Predicted fidelity of interpolation (dB)"),
        (panels[2], predicted[..., 1], "and of the first exit (dB)"),
    ):
        limits = {} if axes is panels[0] else {"vmin": 30, "vmax": 60}
        shown = axes.imshow(values, cmap=COLORMAP, **limits)
        figure.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.7, pad=0.02)
        axes.set_title(title)
    shown = panels[3].imshow(plan.exit_at[0], cmap=colours, vmin=-1.5, vmax=fit.stages - 0.5)
    bar = figure.colorbar(shown, ax=panels[3], orientation="horizontal", shrink=0.95, pad=0.02)
    bar.set_ticks(range(-1, fit.stages), labels=names, fontsize=8)
    panels[3].set_title(f"3. The first that serves for {ASKED:g} dB: {share}")
    for axes in panels:
        axes.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    _save(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()), "plan")


def write_video(fit: ExitFit, upscaler: ape_sr.Upscaler) -> None:
    """A frame of the drawn clip of bench/video.py, its plan, and what changed since the frame before."""
    drawn = {clip.options.get("qp", "by default"): clip for clip in video.CLIPS if clip.made is video.drawn}
    panels: list[Image.Image] = []
    for coding, how in (("0", "without loss"), ("by default", "by x264 as by default")):
        with tempfile.TemporaryDirectory() as folder:
            before, pixels = video.coded(drawn[coding], SHOWN + 1, Path(folder) / "clip.mp4")[-2:]
        reused = video.Reused(upscaler)
        reused(before)
        reused(pixels)
        again = reused.counts[-1][1] / reused.counts[-1][0]
        if not panels:
            plan = upscaler.network.plan(torch.from_numpy(to_planes(pixels, pixel_range(upscaler.network.model))))
            grid = PatchGrid(*pixels.shape[:2], plan.cell, 0)
            exits, stages = plan.exit_at[0].numpy(), fit.stages
            exit_map = draw_exit_map(pixels, exits, grid, stages, float(plan.share))
            panels.append(_captioned(_halved(Image.fromarray(pixels)), "A frame, on which the disc moves"))
            panels.append(_halved(Image.fromarray(exit_map)))
        grey = pixels.mean(2, keepdims=True) * 0.4 + 150
        changed = (pixels != before).any(2)
        shown = np.where(changed[..., None], (215, 25, 28), grey).astype(np.uint8)
        words = (f"What changed since the frame before, coded {how}", f"computed again: {again:.0%} of the picture")
        panels.append(_captioned(_halved(Image.fromarray(shown)), *words))
    width, height = panels[0].width, max(panel.height for panel in panels)
    sheet = Image.new("RGB", (2 * width + GAP, 2 * height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % 2 * (width + GAP), number // 2 * height))
    _save(sheet, "video")


def _halved(panel: Image.Image) -> Image.Image:
    return panel.resize((panel.width // 2, panel.height // 2), Image.Resampling.BOX)


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
