"""The log of a training run: a CSV file and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ape_sr.files import atomic_path
from ape_sr.training.losses import LossParts

PARTS = ("l1", "mse", "psnr")  # each has one column per exit
LABELS = {"l1": "L1 (grey levels)", "mse": "regressor, squared error", "psnr": "PSNR of the crops (dB)"}


class TrainingLog:
    """Appends rows to `log.csv` in the folder `out`.

    step: the step from which training goes on. Rows of later steps, which are left from an interrupted run, are
    removed. The columns are step, seconds (of training, over all starts), lr, loss, and then at every exit L1 (grey
    levels), the regressor's squared error and PSNR (dB).
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path, self.picture = out / "log.csv", out / "log.png"
        header, *rows = self._rows() or [[]]
        whole = (row for row in rows if len(row) == len(header))  # a kill may have cut off the last
        kept = [row for row in whole if row[0].isdigit() and int(row[0]) <= step]
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([header, *kept] if kept else [])

    def write(self, step: int, seconds: float, rate: float, parts: LossParts) -> None:
        """Append the losses of a step. rate: the learning rate."""
        per_exit = [part.tolist() for part in (parts.l1, parts.regressor, parts.psnr)]
        row = [step, seconds, rate, parts.total.item(), *(value for part in per_exit for value in part)]
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                columns = [f"{name}_{i}" for name in PARTS for i in range(len(per_exit[0]))]
                writer.writerow(["step", "seconds", "lr", "loss", *columns])
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])

    def draw(self) -> None:
        """Draw `log.png` from the rows so far, one curve per exit. Without rows nothing is written."""
        header, *rows = self._rows() or [[]]
        if not rows:
            return
        values = np.array(rows, dtype=float)
        figure = Figure(figsize=(12, 3.4), dpi=80, layout="constrained")
        panels = figure.subplots(1, len(PARTS))
        for axes, part in zip(panels, PARTS, strict=True):
            columns = [i for i, name in enumerate(header) if name.startswith(f"{part}_")]
            for number, column in enumerate(columns):
                axes.plot(values[:, 0], values[:, column], lw=0.9, label=f"exit {number}")
            axes.set(xlabel="step", title=LABELS[part])
            axes.grid(alpha=0.3)
        panels[-1].legend(fontsize=7)
        with atomic_path(self.picture) as temporary:
            FigureCanvasAgg(figure).print_png(temporary)

    def _rows(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in csv.reader(file) if row]
