"""A picture that shows how deep the network ran, patch by patch or cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ape_kernels import PatchGrid
from ape_sr.pictures.planes import peak_of

COLORMAP = "viridis"  # lightness rises along it, so it also reads without colour vision and in print
INTERPOLATED = (0.0, 0.0, 0.0)  # of what no network ran on: the least work, the darkest
TINT = 0.55  # share of the colour; the rest is the picture in grey
DPI = 100
HATCH, HATCH_LIGHT = 12, 70  # of what no network ran on: pixels between lines, and their light, of 255
LEGEND = 108  # pixels below the picture
BOX = 24  # height of its boxes, in pixels
MIN_WIDTH = 520  # pixels the legend needs
MAX_PIXELS = 4_000_000  # of the map; Matplotlib takes 70 bytes for each


def draw_exit_map(picture: np.ndarray, exits: np.ndarray, grid: PatchGrid, stages: int, share: float) -> np.ndarray:
    """The picture in grey, every patch or cell tinted, brighter where it took a later exit, with a legend below.

    What was interpolated is hatched.

    picture: uint8, uint16 or float ``[H, W, C]``, the upscaled one. exits: int ``[rows, columns]``, from 0; -1 for what
        was interpolated.
    grid: the patches, with the scale of the picture. stages: number of exits there are.
    share: of the computation of all patches at full depth, in [0, 1].
    Returns uint8 ``[h + legend, max(w, legend), 3]``: h x w is the picture, reduced by a whole factor to at most 4
    megapixels. Where patches overlap the border is drawn halfway.
    """
    factor = math.ceil(math.sqrt(picture.shape[0] * picture.shape[1] / MAX_PIXELS))
    picture = _small_grey(picture, factor)
    rows, columns = (
        np.minimum(-(-_edges(starts, grid, axis) // factor), picture.shape[axis])
        for axis, starts in enumerate((grid.row_starts, grid.column_starts))
    )
    colours = colours_of(stages)
    owner = np.repeat(np.repeat(exits, np.diff(rows), axis=0), np.diff(columns), axis=1)
    tinted = _tint(picture, owner, colours)
    height, width = picture.shape[:2]
    total = (max(width, MIN_WIDTH), height + LEGEND)
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    _number_patches(figure, exits, rows, columns, total)
    _draw_legend(figure, np.bincount(exits.ravel() + 1, minlength=stages + 1), colours, share, total)
    figure.figimage(tinted, 0, LEGEND, origin="upper", zorder=-1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def colours_of(stages: int) -> np.ndarray:
    """float ``[stages + 1, 3]`` in [0, 1]: brighter for later exits; the last, as -1 is, for interpolated."""
    colours = colormaps[COLORMAP](np.linspace(0, 1, max(stages, 2)))[:stages, :3]
    return np.concatenate([colours, [INTERPOLATED]])


def _edges(starts: Sequence[int], grid: PatchGrid, axis: int) -> np.ndarray:
    """Borders between the patches of one axis in pixels of the picture, both ends included."""
    size, patch = (grid.height, grid.width)[axis], grid.patch_shape[axis]
    if grid.overlap == 0:  # cells: the last is cut off by the edge of the image
        return np.array([*range(0, size, patch), size]) * grid.scale
    halfway = [(before + patch + after) * grid.scale // 2 for before, after in pairwise(starts)]
    return np.array([0, *halfway, size * grid.scale])


def _small_grey(picture: np.ndarray, factor: int) -> np.ndarray:
    """Pixels ``[H, W, C]`` to float32 ``[H / factor, W / factor, 1]`` in [0, 255], without transparency."""
    colours = picture[..., : 1 if picture.shape[2] < 3 else 3]
    rows = [
        colours[start : start + factor].mean(axis=(0, 2), dtype=np.float32) for start in range(0, len(colours), factor)
    ]
    starts = np.arange(0, colours.shape[1], factor)
    counts = np.diff(starts, append=colours.shape[1]).astype(np.float32)
    means = np.add.reduceat(np.stack(rows), starts, axis=1) / counts
    return means[..., None] * np.float32(255 / peak_of(picture.dtype))


def _tint(grey: np.ndarray, owner: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Grey ``[h, w, 1]`` in the colours of the exits int ``[h, w]``; -1 hatched, as dark pictures are black too."""
    tinted = (1 - TINT) * grey + TINT * 255 * colours[owner].astype(np.float32)
    height, width = owner.shape
    hatch = (np.arange(height)[:, None] + np.arange(width)) % HATCH == 0
    tinted[hatch & (owner < 0)] += HATCH_LIGHT
    # a line where neighbours took different exits
    line = np.zeros(owner.shape, dtype=bool)
    line[1:] |= owner[1:] != owner[:-1]
    line[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    tinted[line] = 255
    return tinted.round().clip(0, 255).astype(np.uint8)


def _number_patches(
    figure: Figure, exits: np.ndarray, rows: np.ndarray, columns: np.ndarray, total: tuple[int, int]
) -> None:
    for (row, column), index in np.ndenumerate(exits):
        height, width = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
        if index < 0 or min(height, width) < 32:  # nothing ran, or no room for a number
            continue
        _write(figure, str(index), columns[column] + width / 2, total[1] - rows[row] - height / 2, total)


def _write(figure: Figure, text: str, x: float, y: float, total: tuple[int, int]) -> None:
    """Text that can be read on any colour, around a place in pixels from below on the left."""
    outline = [withStroke(linewidth=2, foreground="black")]
    place = x / total[0], y / total[1]
    figure.text(*place, text, color="white", size=11, ha="center", va="center", path_effects=outline)


def _draw_legend(figure: Figure, counts: np.ndarray, colours: np.ndarray, share: float, total: tuple[int, int]) -> None:
    """Draw a legend from less work to more. counts: interpolated cells (left out if there are none), then all exits.

    Each exit is shown as the picture is in it, from dark to light.
    """
    stages = len(counts) - 1
    exits = np.arange(-1 if counts[0] else 0, stages)
    side = min((total[0] - 20) // len(exits), 140)
    grey = np.tile(np.linspace(0, 255, side, dtype=np.float32), (BOX, len(exits)))[..., None]
    figure.figimage(_tint(grey, np.tile(np.repeat(exits, side), (BOX, 1)), colours), 10, 22, origin="upper")
    for place, index in enumerate(exits):
        middle = 10 + (place + 0.5) * side
        _write(figure, "none" if index < 0 else str(index), middle, 22 + BOX / 2, total)
        parts = f"{counts[index + 1] / counts.sum():.0%}{' of parts' if place == 0 and side >= 80 else ''}"
        figure.text(middle / total[0], 4 / total[1], parts, size=9, ha="center")
    words = [f"Brighter: more of the network ran. In all {share:.0%} of the full computation."]
    if stages == 1:
        words.append("0: full depth, as this network has no exits.")
    else:
        words.append(f"Number: the exit where a part left the network, 0 the first, {stages - 1} full depth.")
    if counts[0]:
        words.append("Hatched: interpolated, the network was not run.")
    for line, text in enumerate(words):
        figure.text(10 / total[0], (86 - 18 * line) / total[1], text, size=9, va="bottom")
