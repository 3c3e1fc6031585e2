"""A picture that shows how deep the network ran, patch by patch or cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ape_kernels import PatchGrid

COLORMAP = "viridis"  # lightness rises along it, so it also reads without colour vision and in print
TINT = 0.55  # share of the colour; the rest is the picture in grey
DPI = 100
LEGEND = 84  # pixels below the picture
MIN_WIDTH = 520  # pixels the legend needs


def draw_exit_map(picture: np.ndarray, exits: np.ndarray, grid: PatchGrid, stages: int, share: float) -> np.ndarray:
    """The picture in grey, every patch or cell tinted, brighter where it took a later exit, with a legend below.

    picture: uint8 ``[H, W, 3]``, the upscaled one. exits: int ``[rows, columns]``, from 0; -1 for interpolated,
    which is darkest. grid: the patches, with the scale of the picture; without overlap they are cells, the last ones
    cut off by the edge. stages: number of exits there are. share: of the computation at full depth, in [0, 1].
    Returns uint8 ``[H + legend, max(W, legend), 3]``. Where patches overlap the border is drawn halfway.
    """
    rows, columns = _edges(grid.row_starts, grid, 0), _edges(grid.column_starts, grid, 1)
    colours = colormaps[COLORMAP](np.linspace(0, 1, stages + 1))[:, :3]
    levels = exits + 1  # interpolated, then the exits
    owner = np.repeat(np.repeat(levels, np.diff(rows), axis=0), np.diff(columns), axis=1)
    tinted = _tint(picture, owner, colours)
    height, width = picture.shape[:2]
    total = (max(width, MIN_WIDTH), height + LEGEND)
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    _number_patches(figure, exits, rows, columns, total)
    _draw_legend(figure, np.bincount(levels.ravel(), minlength=stages + 1), colours, share, total)
    figure.figimage(tinted, 0, LEGEND, origin="upper", zorder=-1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _edges(starts: Sequence[int], grid: PatchGrid, axis: int) -> np.ndarray:
    """Borders between the patches of one axis in pixels of the picture, both ends included."""
    size, patch = (grid.height, grid.width)[axis], grid.patch_shape[axis]
    if grid.overlap == 0:  # cells: the last is cut off by the edge of the image
        return np.array([*range(0, size, patch), size]) * grid.scale
    halfway = [(before + patch + after) * grid.scale // 2 for before, after in pairwise(starts)]
    return np.array([0, *halfway, size * grid.scale])


def _tint(picture: np.ndarray, owner: np.ndarray, colours: np.ndarray) -> np.ndarray:
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
    tinted = (1 - TINT) * grey + TINT * 255 * colours[owner].astype(np.float32)
    # a line where neighbours took different exits
    line = np.zeros(owner.shape, dtype=bool)
    line[1:] |= owner[1:] != owner[:-1]
    line[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    tinted[line] = 255
    return tinted.round().astype(np.uint8)


def _number_patches(
    figure: Figure, exits: np.ndarray, rows: np.ndarray, columns: np.ndarray, total: tuple[int, int]
) -> None:
    outline = [withStroke(linewidth=2, foreground="black")]
    for (row, column), index in np.ndenumerate(exits):
        height, width = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
        if index < 0 or min(height, width) < 24:  # nothing ran, or no room for a number
            continue
        x = (columns[column] + width / 2) / total[0]
        y = 1 - (rows[row] + height / 2) / total[1]
        figure.text(x, y, str(index), color="white", size=11, ha="center", va="center", path_effects=outline)


def _draw_legend(figure: Figure, counts: np.ndarray, colours: np.ndarray, share: float, total: tuple[int, int]) -> None:
    levels, length = len(counts), min(total[0], 1000) - 20
    axes = figure.add_axes((10 / total[0], 22 / total[1], length / total[0], 22 / total[1]))
    axes.set(xlim=(0, levels), ylim=(0, 1))
    axes.axis("off")
    for index, count in enumerate(counts):
        name = str(index - 1) if index else "interp." if levels > 8 else "interpolated"
        axes.add_patch(Rectangle((index, 0), 1, 1, facecolor=colours[index], edgecolor="white"))
        dark = colours[index].mean() < 0.5
        axes.text(index + 0.5, 0.47, name, color="white" if dark else "black", size=9, ha="center", va="center")
        axes.text(index + 0.5, -0.2, f"{count / counts.sum():.0%}", size=9, ha="center", va="top")
    title = f"Brighter: more work. Exits (0 first, {levels - 2} full depth) and the share of each. Work: {share:.0%}"
    figure.text(10 / total[0], 54 / total[1], title, size=9, va="bottom")
