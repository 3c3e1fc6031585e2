"""Plans: how deep each cell of an image runs, decided before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ape_kernels.backends.protocol import Predictions
from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.work import Work, areas, ring_pixels
from ape_kernels.program import PatchProgram

LEAST, MOST = 20.0, 80.0  # fidelities in dB that can be asked for


@dataclass(frozen=True)
class Plan:
    """How deep each cell of an image batch runs, and what is expected of it.

    exit_at: int64 ``[B, R, K]``, the stage after which a cell leaves, -1 where it is interpolated. cell: its sides in
    low-resolution pixels; the last of a row or column are cut off by the edge of the image.
    fidelity: float32 ``[B, R, K]``, predicted PSNR in dB to full depth; infinite at full depth.
    cost: float32 ``[B, R, K]``, work as a share of the cell's at full depth, rings where they lie.
    picture_fidelity: float32 ``[B]``, predicted PSNR in dB of the picture to the model's own.
    share: float64 ``[B]``, work as a share of the whole picture's at full depth.
    asked: float32 ``[B]``, the fidelity asked for; with a budget, what it allowed.
    """

    exit_at: Tensor
    cell: int
    fidelity: Tensor
    cost: Tensor
    picture_fidelity: Tensor
    share: Tensor
    asked: Tensor

    def __str__(self) -> str:
        """Share of the computation, what is expected, and how much is interpolated; means over the batch."""
        if not self.exit_at.numel():
            return "no images"
        expected = float(self.picture_fidelity.mean())
        words = [
            f"{float(self.share.mean()):.1%} of the computation",
            "full depth" if expected == math.inf else f"{expected:.1f} dB expected to full depth",
        ]
        if interpolated := int((self.exit_at < 0).sum()):
            words.append(f"{interpolated / self.exit_at.numel():.0%} interpolated")
        return ", ".join(words)

    def __repr__(self) -> str:
        words = [f"{'x'.join(map(str, self.exit_at.shape))} cells of {self.cell} pixels"]
        asked = self.asked.unique()
        if ((asked >= LEAST) & (asked <= MOST)).all():  # what a budget allows may be anything
            words += [f"{dB:g} dB asked" for dB in asked.tolist()]
        return f"Plan({', '.join(words)}, {self})"


def check_fidelity(fidelity: float) -> float:
    """The fidelity as a float; ValueError unless it is a number from 20 to 80."""
    number = isinstance(fidelity, (int, float)) and not isinstance(fidelity, bool)
    if not number or not LEAST <= fidelity <= MOST:
        raise ValueError(
            f"fidelity: expected a number of dB from {LEAST:g} to {MOST:g}, None (full depth) or 'auto' (the fit's), "
            f"got {fidelity!r}"
        )
    return float(fidelity)


def check_budget(budget: float, work: Work) -> float:
    """The budget as a float; ValueError unless it is a share of all work from what interpolation takes to 1."""
    least = work.candidates[0] / work.candidates[-1]
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not number or not least <= budget <= 1:
        raise ValueError(f"budget: expected a share from {least:.3g}, all interpolated, to 1, got {budget!r}")
    return float(budget)


def make_plan(fit: ExitFit, program: PatchProgram, image: Tensor, fidelity: float, backend: str = "torch") -> Plan:
    """The cheapest candidate of each cell that is expected to serve; full depth where none is.

    fit, program: of one network. image: float32 ``[B, C, H, W]``, finite. fidelity: dB, from 20 to 80.
    backend: the one that is to compute the statistics, if it can.
    Raises ValueError for a fit of another network's shape, and for another fidelity.
    """
    asked = torch.full((len(image),), check_fidelity(fidelity), dtype=torch.float32, device=image.device)
    return _Outlook.of(fit, program, image, backend).plan(asked)


def plan_within(fit: ExitFit, program: PatchProgram, image: Tensor, budget: float, backend: str = "torch") -> Plan:
    """As `make_plan`, for each image with the highest fidelity whose work fits.

    budget: share of the work of full depth that each image may take, from what interpolation takes to 1, which is full
    depth. Found by halving the sorted fidelities at which some cell changes; no device is waited for.
    """
    outlook = _Outlook.of(fit, program, image, backend)
    return outlook.plan(outlook.best_within(check_budget(budget, outlook.work)))


def plan_for(fit: ExitFit, program: PatchProgram, image: Tensor, asked: float, backend: str = "torch") -> Plan:
    """As `make_plan`, also for what a budget allows: any number of dB, the infinite ones among them."""
    return _Outlook.of(fit, program, image, backend).plan(
        torch.full((len(image),), asked, dtype=torch.float32, device=image.device)
    )


def levels_of(fit: ExitFit, image: Tensor, backend: str = "torch") -> Tensor:
    """What `asked_within` takes, float32 ``[B, R, K, C]``: `level` of `Predictions`. image: as for `make_plan`."""
    fit = fit.to(image.device)
    statistics = torch.ops.ape_kernels.statistics(image, fit.cell, fit.value_range, backend)
    return fit.predict(statistics, backend).level


def asked_within(fit: ExitFit, program: PatchProgram, levels: Tensor, sides: tuple[int, int], budget: float) -> float:
    """What `plan_within` asks for, in dB, of one image whose levels are known.

    levels: float32 ``[R, K, C]``. sides: height and width of the image. budget: as for `plan_within`.
    """
    check_fit(fit, program)
    heights, widths = areas(*sides, fit.cell, levels.device)
    work = Work.of(program, fit.tones is not None)
    outlook = _Outlook(fit, work, Predictions(levels[None], levels[None]), heights, widths)
    return float(outlook.best_within(check_budget(budget, work)))


@dataclass(frozen=True)
class _Outlook:
    """What is expected of each candidate, and what it costs."""

    fit: ExitFit
    work: Work
    predictions: Predictions
    heights: Tensor
    widths: Tensor

    @classmethod
    def of(cls, fit: ExitFit, program: PatchProgram, image: Tensor, backend: str) -> _Outlook:
        check_fit(fit, program)
        fit = fit.to(image.device)
        statistics = torch.ops.ape_kernels.statistics(image, fit.cell, fit.value_range, backend)
        work = Work.of(program, fit.tones is not None)
        height, width = image.shape[2:]
        heights, widths = areas(height, width, fit.cell, image.device)
        return cls(fit, work, fit.predict(statistics, backend), heights, widths)

    def chosen(self, asked: Tensor) -> Tensor:
        """The first candidate of each cell that serves, int64 ``[B, R, K]``; the last, full depth, always does."""
        serves = self.predictions.level >= asked[:, None, None, None]
        always = torch.ones_like(serves[..., :1])
        return torch.cat([serves, always], -1).int().argmax(-1)

    def flops(self, chosen: Tensor) -> Tensor:
        """FLOPs of each cell, int64 ``[B, R, K]``: whole numbers, so that sums do not depend on their order."""
        own = _on(self.work.candidates, chosen.device)[chosen] * (self.heights * self.widths)
        ring = ring_pixels(chosen > 0, self.heights, self.widths, self.fit.ring)
        return own + ring * self.work.ring

    @property
    def full(self) -> Tensor:
        """FLOPs of each cell at full depth, int64 ``[R, K]``."""
        return self.heights * self.widths * self.work.candidates[-1]

    def best_within(self, budget: float) -> Tensor:
        """float32 ``[B]``: the highest of the levels that keeps the work within the budget, -inf and inf among them."""
        levels = self.predictions.level.flatten(1)
        end = torch.full_like(levels[:, :1], math.inf)
        levels = torch.cat([-end, levels.sort(1).values, end], 1)
        most = (self.full.sum().double() * budget).floor().long()
        low = torch.zeros(len(levels), dtype=torch.int64, device=levels.device)  # fits
        high = low + levels.shape[1]  # does not, or is none
        for _ in range(levels.shape[1].bit_length()):
            middle = (low + high) // 2
            asked = levels.gather(1, middle[:, None])[:, 0]
            fits = self.flops(self.chosen(asked)).sum((1, 2)) <= most
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return levels.gather(1, low[:, None])[:, 0]

    def plan(self, asked: Tensor) -> Plan:
        chosen = self.chosen(asked)
        expected = self.predictions.fidelity
        fidelity = torch.cat([expected, torch.full_like(expected[..., :1], math.inf)], -1)
        fidelity = fidelity.gather(-1, chosen[..., None])[..., 0]
        flops, area = self.flops(chosen), self.heights * self.widths
        error = (10 ** (-fidelity.double() / 10) * area).sum((1, 2)) / area.sum()
        return Plan(
            chosen - 1,
            self.fit.cell,
            fidelity,
            (flops / self.full).float(),
            (-10 * torch.log10(error)).float(),
            flops.sum((1, 2)).double() / self.full.sum(),
            asked,
        )


@lru_cache(maxsize=64)
def _on(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int64, kept: a copy to a GPU would make the host wait, and cannot be captured in a graph."""
    return torch.tensor(values, device=device)


def check_fit(fit: ExitFit, program: PatchProgram) -> None:
    """ValueError unless `fit` is of a network of the program's scale and stages."""
    expected, got = (program.scale, len(program.stages)), (fit.scale, fit.stages)
    if expected != got:
        raise ValueError(
            f"exit_fit: expected one for scale {expected[0]} and {expected[1]} stages, got {got[0]} and {got[1]}"
        )
