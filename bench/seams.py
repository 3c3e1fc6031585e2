"""Seams: are borders visible between patches that left at different exits?

    python bench/seams.py -i Urban10 -n weights.safetensors -o docs/results

The measure is the mean gradient across patch borders (Y, grey levels per pixel), minus that of the same pixels in the
picture of the whole image. It is taken on the lines of pixels where the covering patches, or their weights, begin or
cease to change; the worst line counts. It is measured for overlaps of 0 to 8 low-resolution pixels and both blends,
together with PSNR and FLOPs. Writes `seams.json`, a plot and a picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ape_kernels import APEForward, PatchGrid
from ape_kernels.geometry import BLENDS
from ape_kernels.run.patches import merge, split
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_image, to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.metrics import LUMA, psnr_y

OVERLAPS = range(9)
SHOWN = 90  # sides of the details that are shown, in pixels
SHOWN_PATCH = 24  # smaller than usual, so that a small photo has enough borders
BRIGHTEST = 24  # the difference in grey levels that is shown as white


def lines(starts: Sequence[int], patch: int, scale: int, offset: int) -> list[int]:
    """Lines of the merged picture that lie `offset` pixels after the line where a patch begins or has just ended."""
    begins = {start * scale + offset for start in starts[1:]}
    return sorted(begins | {(start + patch) * scale + offset for start in starts[:-1]})


def excess(picture: np.ndarray, whole: np.ndarray, grid: PatchGrid) -> float:
    """The largest mean excess of the gradient, over the lines within a pixel of where overlaps begin and end."""
    luma, reference = (image.astype(np.float64) @ LUMA for image in (picture, whole))
    worst = []
    for offset in (-1, 0, 1):
        found = []
        for axis, starts in ((0, grid.row_starts), (1, grid.column_starts)):
            size = luma.shape[axis]
            at = [line for line in lines(starts, grid.patch_shape[axis], grid.scale, offset) if 0 < line < size]
            for image, sign in ((luma, 1), (reference, -1)):
                gradient = np.abs(np.diff(image, axis=axis))
                found.append(sign * np.take(gradient, np.array(at, dtype=int) - 1, axis=axis).ravel())
        jumps = np.concatenate([found[0] + found[1], found[2] + found[3]])
        worst.append(jumps.mean() if len(jumps) else 0.0)
    return float(max(worst))


def measure(network: APEForward, folder: Path, thresholds: Sequence[float]) -> list[dict[str, float | str]]:
    """One row per threshold, overlap and blend, with means over the pictures."""
    found: dict[tuple[float, int, str], list[tuple[float, float, float]]] = {}
    for pair in find_pairs(folder):
        lr, hr = pair.read(network.scale)
        pixels = to_tensor(lr)
        with torch.inference_mode():
            whole = to_image(network.model(pixels))
        base = None
        for overlap in OVERLAPS:
            grids = {b: PatchGrid(*lr.shape[:2], network.patch_size, overlap, network.scale, b) for b in BLENDS}
            patches = split(PatchGrid(*lr.shape[:2], network.patch_size, overlap), pixels)
            for network.threshold in thresholds:
                sr, exit_index, _ = network.forward_patches(patches)
                flops = sum(network.program.flops_to_stage(i) for i in exit_index.tolist())
                base = base or flops  # full depth without overlap
                for blend, grid in grids.items():
                    picture = to_image(merge(grid, sr))
                    row = (excess(picture, whole, grid), psnr_y(picture, hr, network.scale), flops / base)
                    found.setdefault((network.threshold, overlap, blend), []).append(row)
    rows = []
    for (threshold, overlap, blend), values in found.items():
        seam, psnr, flops = (float(value) for value in np.mean(values, axis=0))
        rows.append(
            {"threshold": threshold, "overlap": overlap, "blend": blend, "excess": seam, "psnr_y": psnr, "flops": flops}
        )
    return rows


def show(network: APEForward, folder: Path, threshold: float, path: Path) -> None:
    """Write a PNG of the detail where the most different exits meet, for several overlaps.

    Below each stands its difference from the picture of the whole image.
    """
    network.threshold, network.patch_size = threshold, SHOWN_PATCH
    best, shown = -1.0, None
    for pair in find_pairs(folder):
        lr, hr = pair.read(network.scale)
        grid = PatchGrid(*lr.shape[:2], network.patch_size, 0)
        _, exits, _ = network.forward_patches(split(grid, to_tensor(lr)))
        exits = exits.view(grid.shape).numpy()
        for row in range(grid.shape[0] - 1):
            for column in range(grid.shape[1] - 1):
                spread = float(np.ptp(exits[row : row + 2, column : column + 2]))
                corner = (grid.row_starts[row + 1], grid.column_starts[column + 1])
                regular = corner == ((row + 1) * SHOWN_PATCH, (column + 1) * SHOWN_PATCH)  # no patch was moved back
                if regular and spread > best:
                    best, shown = spread, (lr, hr, [c * network.scale for c in corner])
    lr, hr, (y, x) = shown
    with torch.inference_mode():
        panels = {"HR": hr, "whole image": to_image(network.model(to_tensor(lr)))}
    for overlap, blend in ((0, "linear"), (2, "average"), (2, "linear"), (8, "linear")):
        network.overlap, network.blend = overlap, blend
        panels[f"overlap {overlap}" + (f", {blend}" if overlap else "")] = to_image(network(to_tensor(lr)))
    figure = Figure(figsize=(2.2 * len(panels), 4.6), dpi=75, layout="constrained")
    top, left = max(0, y - SHOWN // 2), max(0, x - SHOWN // 2)
    inside = (slice(top, top + SHOWN), slice(left, left + SHOWN))
    whole = panels["whole image"][inside].astype(int)
    for column, (name, image) in zip(figure.subplots(2, len(panels)).T, panels.items(), strict=True):
        difference = np.abs(image[inside].astype(int) - whole).mean(axis=2)
        column[0].imshow(image[inside], interpolation="nearest")
        column[1].imshow(difference, cmap="gray", vmin=0, vmax=BRIGHTEST, interpolation="nearest")
        column[0].set_title(name, fontsize=8)
        for axes in column:
            axes.axis("off")
        column[1].set_visible(name not in ("HR", "whole image"))
    FigureCanvasAgg(figure).print_png(path)


def draw(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Write a PNG of the excess against the overlap and of PSNR against FLOPs."""
    figure = Figure(figsize=(10, 3.4), dpi=75, layout="constrained")
    seams, quality = figure.subplots(1, 2)
    for threshold in dict.fromkeys(row["threshold"] for row in rows):
        for blend in BLENDS:
            line = [row for row in rows if (row["threshold"], row["blend"]) == (threshold, blend)]
            label, style = f"threshold {threshold:g}, {blend}", "-" if blend == "linear" else "--"
            seams.plot([r["overlap"] for r in line], [r["excess"] for r in line], style, marker="o", ms=3, label=label)
            x = [100 * r["flops"] for r in line]
            quality.plot(x, [r["psnr_y"] for r in line], style, marker="o", ms=3, label=label)
    seams.set(xlabel="overlap (low-resolution pixels)", ylabel="excess gradient (grey levels)")
    quality.set(xlabel="FLOPs, % of full depth without overlap", ylabel="PSNR Y (dB)")
    seams.legend(fontsize=7)
    for axes in (seams, quality):
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of pictures")
    parser.add_argument("-n", "--weights", type=Path, required=True, help="weights with exits")
    parser.add_argument("--show", type=Path, help="folder of the picture that is shown (by default the input)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--threshold", type=float, default=0.14, help="with it patches leave early (%(default)s)")
    args = parser.parse_args()
    network = APEForward(load_model(args.weights), 0.0)
    rows = measure(network, args.input, (0.0, args.threshold))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "seams.json").write_text(json.dumps(rows) + "\n")
    draw(args.output / "seams.png", rows)
    show(network, args.show or args.input, args.threshold, args.output / "seams_shown.png")
    for row in rows:
        print(" ".join(f"{name} {value:<8.5g}" if name != "blend" else f"{value:8}" for name, value in row.items()))


if __name__ == "__main__":
    main()
