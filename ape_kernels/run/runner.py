"""How a module runs images, its settings resolved: on shared feature maps or on patches, whole or strip by strip."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends.protocol import Depths, Exits, Kept
from ape_kernels.geometry import folded_geometry
from ape_kernels.inputs import checked_depths
from ape_kernels.packed import Packed
from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.plan import Plan, make_plan, plan_within
from ape_kernels.progress import Progress
from ape_kernels.report import Report, make_cell_report, make_report
from ape_kernels.run import levels
from ape_kernels.run.images import RING, Put, run_again, run_image
from ape_kernels.run.levels import Levels
from ape_kernels.run.patches import Cut, run_images


class _Way(NamedTuple):
    """How far an image runs on shared feature maps."""

    depths: Depths
    colours: Tensor | None  # None: the image's own
    plan: Plan | None


@dataclass
class Runner:
    """What `APEForward` runs images with, until its settings change.

    cut, exits: for images on patches; cut is None on shared feature maps. why_patches: what keeps patches on their own.
    cell: see `APEForward`.
    fit, fidelity, budget: of plans.
    """

    packed: Packed
    cut: Cut | None
    why_patches: str
    exits: Exits
    cell: int
    fit: ExitFit | None
    fidelity: float | None
    budget: float | None

    @property
    def plans(self) -> bool:
        """Whether images are planned."""
        return self.fit is not None and not (self.fidelity is None and self.budget is None)

    def plan(self, pixels: Tensor) -> Plan | None:
        """The plan that the settings ask for; None for full depth. pixels: float32 ``[B, C, H, W]``."""
        if not self.plans:
            return None
        assert self.fit is not None
        if self.budget is not None:
            return plan_within(self.fit, self.packed.program, pixels, self.budget, self.packed.backend)
        assert self.fidelity is not None
        return make_plan(self.fit, self.packed.program, pixels, self.fidelity, self.packed.backend)

    def run(
        self,
        pixels: Tensor,
        exit_at: Tensor | None = None,
        plan: Plan | None = None,
        *,
        report: bool,
        progress: Progress | None = None,
        put: Put | None = None,
    ) -> tuple[Tensor, Report | None]:
        """Pictures of images, and what was done if `report` says so.

        pixels: float32 ``[B, C, H, W]``. exit_at, plan: as `APEForward` takes them. progress: see there.
        put: takes the picture of one image strip by strip, instead of a picture that is whole; then the picture is
        empty.
        """
        if self.cut is None:
            way = self._way(lambda: pixels, pixels, exit_at, plan)
            sr = run_image(pixels, self.packed, way.depths, way.colours, progress, put)
            return sr, make_cell_report(self.packed.program, way.depths, pixels, way.plan) if report else None
        if exit_at is not None or plan is not None:
            name = "plan" if exit_at is None else "exit_at"
            raise ValueError(f"{name}: expected None for patches on their own: {self.why_patches}")
        results = run_images(pixels, self.packed, self.cut, self.exits, progress, put)
        if not report:
            return results.sr, None
        fold = self.packed.program.fold
        patch_size, _ = folded_geometry(self.cut.patch_size, self.cut.overlap, fold)
        area = math.prod(min(patch_size, -(-side // fold)) for side in pixels.shape[2:])
        return results.sr, make_report(self.packed.program, results.exit_index, results.capacity, area)

    def keep(self, height: int, width: int) -> Kept | None:
        """For images of that size that follow each other; None where whole images are run, one like the other."""
        if self.cut is not None or self.packed.sharing is None:
            return None
        sides = (-(-side // self.packed.shape.fold) for side in (height, width))
        return ops.keep(self.packed.tensors, self.packed.sharing, (next(sides), next(sides)), self.packed.backend)

    def run_again(self, pixels: Tensor, plan: Plan | None, kept: Kept, picture: Tensor | None) -> Tensor:
        """The picture of one image after another, of which it computes what changed.

        pixels: float32 ``[1, C, H, W]``. plan: None for full depth. kept: from `keep`. picture: what the call before
        has returned, which is written over; None in the first.
        """
        way = self._way(lambda: pixels, pixels, None, plan)
        return run_again(pixels, self.packed, way.depths, way.colours, kept, picture)

    def run_levels(
        self,
        given: Levels,
        pixels: Callable[[], Tensor],
        progress: Progress | None = None,
        plan: Plan | None = None,
        kept: Kept | None = None,
    ) -> Report | None:
        """The picture of an image as whole numbers, with no picture or image of floats in between.

        pixels: gives the image as float32 ``[1, C, H, W]``, if a plan must be made from it. plan: as `run` takes it.
        kept: as `levels.run_levels` takes it.
        Returns None, and has done nothing, where the backend cannot do that or the image runs on patches.
        """
        if self.cut is not None or not levels.can(self.packed):
            return None
        height, width, channels = given.image.shape
        one = torch.empty(1, dtype=torch.float32, device="cpu")
        like = one.expand(1, channels, height, width)  # its shape, without its memory
        way = self._way(pixels, like, None, plan)
        levels.run_levels(given, self.packed, way.depths, way.colours, progress, kept)
        return make_cell_report(self.packed.program, way.depths, like, way.plan)

    def _way(self, pixels: Callable[[], Tensor], like: Tensor, exit_at: Tensor | None, plan: Plan | None) -> _Way:
        """As the arguments of `run` say, or else the settings. like: has the image's shape."""
        stages, fit = len(self.packed.program.stages), self.fit
        if exit_at is not None and plan is not None:
            raise ValueError("plan: expected None with exit_at, got both")
        if exit_at is not None:
            exit_at = checked_depths(exit_at, "exit_at", like, self.cell, stages)
        elif plan is not None:
            exit_at = checked_depths(plan.exit_at, "plan.exit_at", like, plan.cell, stages)
        elif self.plans and (plan := self.plan(pixels())) is not None:
            exit_at = plan.exit_at
        cell = self.cell if plan is None else plan.cell
        colours = None if fit is None or fit.tones is None or exit_at is None else fit.colours(pixels())
        return _Way(Depths(exit_at, cell, RING if fit is None else fit.ring), colours, plan)
