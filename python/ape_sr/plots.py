"""Plots of quality against computation and time, and of the exits that patches took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ape_sr.evaluate import Row
from ape_sr.exit_map import colours_of
from ape_sr.files import atomic_path

MARKERS = {"fidelity": "o-", "budget": "s--", "threshold": "^:"}


def draw_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG: PSNR (Y) against FLOPs, PSNR against time, and patches per exit.

    The exits are one bar per fidelity, budget and threshold, if there are any.
    """
    figure = Figure(figsize=(12, 3.6), dpi=80, layout="constrained")
    by_flops, by_time, exits = figure.subplots(1, 3)
    early = [row for row in rows if row.method.kind in MARKERS]
    for kind, marker in MARKERS.items():
        line = sorted((row for row in early if row.method.kind == kind), key=lambda row: row.number("flops_share"))
        for axes, field, factor in ((by_flops, "flops_share", 100), (by_time, "seconds", 1)):
            if line:
                x = [factor * row.number(field) for row in line]
                axes.plot(x, [row.number("psnr_y") for row in line], marker, ms=4, label=kind)
    for row in rows:
        if row.method.kind not in MARKERS:
            by_flops.axhline(row.number("psnr_y"), color="grey", ls=":" if row.method.kind == "bicubic" else "--", lw=1)
            by_time.plot(row.number("seconds"), row.number("psnr_y"), "x", color="grey")
            by_time.annotate(row.method.name, (row.number("seconds"), row.number("psnr_y")), fontsize=7)
    by_flops.set(xlabel="FLOPs, % of full depth", ylabel="PSNR Y (dB)")
    by_time.set(xlabel="seconds per image")
    by_time.margins(x=0.15)  # leaves room for the names
    if early:
        by_flops.legend(fontsize=7)
        _draw_exits(exits, early)
    for axes in (by_flops, by_time):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _draw_exits(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw stacked bars with the shares of the patches or cells that took each exit, interpolated ones below."""
    counts = np.array([[row.interpolated, *row.patches_per_exit] for row in rows], dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    colours = np.roll(colours_of(counts.shape[1] - 1), 1, axis=0)
    below = np.zeros(len(rows))
    for level, share in enumerate(shares.T):
        name = f"exit {level - 1}" if level else "interpolated"
        axes.bar(range(len(rows)), share, bottom=below, color=colours[level], label=name)
        below += share
    axes.set_xticks(range(len(rows)), [row.method.name for row in rows], rotation=60, fontsize=7, ha="right")
    axes.set(ylabel="% of patches", xlim=(-0.6, len(rows) - 0.4))
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
