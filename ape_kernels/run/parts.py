"""Images of which only parts are held: what has to be read for a part, and the plan that the whole image has there."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ape_kernels.plan.fit import MEASURE, ExitFit
from ape_kernels.plan.plan import Plan, asked_within, levels_of, plan_for
from ape_kernels.run.images import RING
from ape_kernels.run.runner import Runner
from ape_kernels.run.windows import Window, Windows


class Parts:
    """One image, cut into parts that lie at multiples of `step`.

    runner: of an `APEForward` that runs images on shared feature maps. height, width: of the image, in pixels.
    step: pixels. exact: whether a part's bits are the whole image's own; else they are to rounding.

    Raises ValueError for a runner that runs images on patches.
    """

    def __init__(self, runner: Runner, height: int, width: int) -> None:
        if runner.cut is not None:
            raise ValueError(f"runner: expected one that runs images on shared feature maps: {runner.why_patches}")
        self._runner, self._height, self._width = runner, height, width
        fit = runner.fit
        self._square = 1  # pixels along the sides of the squares within which cells are planned together
        if runner.plans and fit is not None:
            self._square = fit.cell * max(1, MEASURE // fit.cell)
        self._windows = Windows.of(runner.packed, self._square, RING if fit is None else fit.ring)
        self.step, self.exact = self._windows.step, self._windows.exact

    @property
    def margin(self) -> int:
        """Pixels around a part, at multiples of `step`, that are run with it."""
        return math.ceil(self._windows.margin / self.step) * self.step

    def to_run(self, part: Window) -> Window:
        """What has to be run for a part."""
        return self._windows.around(part, (self._height, self._width))

    def to_plan(self, part: Window) -> Window:
        """What has to be seen for the plan of a part that lies at multiples of the cells."""
        if not self._runner.plans:
            return part
        top, left = (max(0, (first // self._square - 1) * self._square) for first in (part.top, part.left))
        bottom = min(self._height, (-(-part.bottom // self._square) + 1) * self._square)
        right = min(self._width, (-(-part.right // self._square) + 1) * self._square)
        return Window(top, left, bottom - top, right - left)

    def levels(self, pixels: Tensor, part: Window) -> Tensor:
        """What a budget is shared out by, float32 ``[R, K, C]`` of the cells of a part.

        pixels: float32 ``[1, C, H, W]``, what `to_plan` says.
        """
        fit = self._fit
        levels = levels_of(fit, pixels, self._runner.packed.backend)[0]
        return levels[self._cells(part, self.to_plan(part))]

    def asked(self, levels: Tensor | None) -> float | None:
        """The fidelity in dB that the plan of every part is made for; None for full depth.

        levels: of all cells of the image, `levels` put side by side, for a budget; None without one.
        """
        runner = self._runner
        if not runner.plans:
            return None
        if runner.budget is None:
            return runner.fidelity
        assert levels is not None
        return asked_within(self._fit, runner.packed.program, levels, (self._height, self._width), runner.budget)

    def plan(self, pixels: Tensor, part: Window, asked: float) -> Plan:
        """The cells of a part in the whole image's plan; its means and shares are those of `to_plan` alone.

        pixels: float32 ``[1, C, H, W]``, what `to_plan` says. part: at multiples of the cells. asked: as `asked` says.
        """
        plan = plan_for(self._fit, self._runner.packed.program, pixels, asked, self._runner.packed.backend)
        rows, columns = self._cells(part, self.to_plan(part))
        cut = {name: getattr(plan, name)[:, rows, columns] for name in ("exit_at", "fidelity", "cost")}
        return replace(plan, **cut)

    def within(self, plan: Plan, part: Window, whole: Window) -> tuple[float, float]:
        """Sums over the pixels of a part: work as shares of full depth's, and mean squares expected, of white's.

        plan: of `whole`, which holds the part.
        """
        cells = (0, *self._cells(part, whole))
        cost, fidelity = plan.cost[cells].double().cpu(), plan.fidelity[cells].double().cpu()
        heights, widths = (
            torch.tensor([min(plan.cell, side - first) for first in range(0, side, plan.cell)], device="cpu")
            for side in (part.height, part.width)
        )
        area = heights[:, None] * widths[None]
        return float((cost * area).sum()), float((10 ** (-fidelity / 10) * area).sum())

    @property
    def _fit(self) -> ExitFit:
        assert self._runner.fit is not None
        return self._runner.fit

    def _cells(self, part: Window, whole: Window) -> tuple[slice, slice]:
        """Rows and columns of the cells of a part among those of `whole`, which holds it."""
        cell = self._fit.cell
        rows = slice((part.top - whole.top) // cell, -(-(part.bottom - whole.top) // cell))
        return rows, slice((part.left - whole.left) // cell, -(-(part.right - whole.left) // cell))
