"""A run by windows: one after the other is read, planned, upscaled and written, whatever the size of the image."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import ape_kernels
from ape_kernels.plan import Plan
from ape_kernels.run.parts import Parts
from ape_kernels.run.windows import Window
from ape_sr.errors import UserError, memory_for
from ape_sr.folder.jobs import Job
from ape_sr.giant.source import Source
from ape_sr.giant.tags import carried_tags
from ape_sr.giant.target import Layout, Target
from ape_sr.models.base import pixel_range
from ape_sr.pictures.colour import fitting_profile
from ape_sr.pictures.notes import as_text
from ape_sr.pictures.planes import to_planes
from ape_sr.pipeline import Stages, run_stages

if TYPE_CHECKING:
    from ape_sr.upscaler import Upscaler

RUN_BYTES = 400_000_000  # of the picture of a window with what is run around it, about
LEAST = 512  # pixels along the sides of a window, about, where so much around it is run that RUN_BYTES is not kept
TILE = 512  # pixels along the sides of a tile of the result, about


@dataclass(frozen=True)
class Seen:
    """A window that was read. pixels: of `whole`, which holds all that its plan depends on."""

    whole: Window
    pixels: np.ndarray


@dataclass(frozen=True)
class Made:
    """A window's picture. sums: pixels, seconds, work as shares of full depth's, and mean squares expected."""

    pixels: np.ndarray
    sums: list[float]


class Windowed:
    """One image that is upscaled window by window.

    job: its files. note: for the result, see `ape_sr.pictures.notes`. begun: told about how many windows there are and
    how many of them were done before. moved: told how many pixels of the image are done.

    pixels: of the image. count: of its windows; kept: of those that are done, on the disk.

    Raises UserError for a network that shares no feature maps, and for what is wrong with the files.
    """

    def __init__(
        self,
        job: Job,
        upscaler: Upscaler,
        note: str,
        begun: Callable[[int, int], None],
        moved: Callable[[int], None],
    ) -> None:
        self._job, self._upscaler, self._note = job, upscaler, note
        self._begun, self._moved = begun, moved
        self._runner = upscaler.network.runner()
        if self._runner.cut is not None:
            raise UserError(
                f"windows: expected a network that runs images on shared feature maps: {self._runner.why_patches}"
            )
        self._source = Source(job.source)
        source = self._source
        self._parts = Parts(self._runner, source.height, source.width)
        self._range = pixel_range(upscaler.network.model)
        self.side, self.tile = sides_of(
            self._parts.step, self._parts.margin, upscaler.scale, source.channels * source.dtype.itemsize
        )
        self._windows = [
            Window(top, left, min(self.side, source.height - top), min(self.side, source.width - left))
            for top in range(0, source.height, self.side)
            for left in range(0, source.width, self.side)
        ]
        self.pixels, self.count, self.kept = source.width * source.height, len(self._windows), 0
        self._asked: float | None = None
        self._computed = 0  # pixels

    def run(self) -> str:
        """Do the windows that are not done; gives the line that reports all.

        Whatever interrupts it, the windows that are done are kept for the next run.
        """
        with closing(self._source), closing(self._target()) as target:
            windows, self.kept = self._windows, len(target.done)
            left = [number for number in range(self.count) if number not in target.done]
            self._computed = sum(int(entry.sums[0]) for entry in target.done.values())
            self._begun(self.count, self.kept)
            self._moved(self._computed)
            with memory_for(self._job.source):
                if left:
                    self._asked = self._parts.asked(self._levels())
                stages = Stages[int, Seen, Made](
                    lambda number: self._read(windows[number]),
                    lambda number, _: math.prod(windows[number][2:]) * self._bytes_per_pixel,
                    lambda number, seen: self._compute(windows[number], seen),
                    lambda number, made, helpers: self._write(target, number, windows[number], made, helpers),
                )
                held = 2 * self.side**2 * self._bytes_per_pixel
                with closing(run_stages(left, stages, held)) as results:
                    for done in results:
                        if done.error is not None:
                            raise done.error
                target.finish()
            return self._line([entry.sums for entry in target.done.values()])

    @property
    def _bytes_per_pixel(self) -> int:
        """Of the result, for each pixel of the image."""
        return self._upscaler.scale**2 * self._source.channels * self._source.dtype.itemsize

    def _target(self) -> Target:
        source, scale = self._source, self._upscaler.scale
        layout = Layout(source.height * scale, source.width * scale, source.channels, source.dtype.name, self.tile)
        identity = json.dumps({"note": self._note, "version": ape_kernels.__version__, "side": self.side})
        icc = source.page.tags.valueof(34675)
        return Target(
            self._job.picture,
            layout,
            identity,
            note=as_text(self._note),
            icc=fitting_profile(icc if isinstance(icc, bytes) else None, source.channels),
            tags=carried_tags(source.page, scale),
        )

    def _levels(self) -> Tensor | None:
        """What a budget is shared out by, of the whole image; None without one."""
        if self._runner.budget is None or not self._runner.plans:
            return None
        rows: dict[int, list[Tensor]] = {}
        for window in self._windows:
            pixels = self._planes(self._source.read(self._parts.to_plan(window)))
            rows.setdefault(window.top, []).append(self._parts.levels(pixels, window))
        return torch.cat([torch.cat(row, 1) for row in rows.values()])

    def _planes(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(to_planes(pixels, self._range)).to(self._runner.packed.weights.device)

    def _read(self, window: Window) -> Seen:
        whole = self._parts.to_plan(self._parts.to_run(window))
        return Seen(whole, self._source.read(whole))

    def _compute(self, window: Window, seen: Seen) -> Made:
        started = time.perf_counter()
        to_run, scale = self._parts.to_run(window), self._upscaler.scale
        plan: Plan | None = None
        area = window.height * window.width
        sums = [float(area), float(area), 0.0]
        if self._asked is not None:
            plan = self._parts.plan(self._planes(seen.pixels), to_run, self._asked)
            sums[1:] = self._parts.within(plan, window, to_run)
        out = np.empty((to_run.height * scale, to_run.width * scale, seen.pixels.shape[2]), seen.pixels.dtype)

        def told(share: float) -> None:
            self._moved(self._computed + int(share * area))

        self._upscaler.fill(_within(seen.pixels, to_run, seen.whole), out, told, plan)
        self._computed += area
        made = _within(out, window.scaled(scale), to_run.scaled(scale)).copy()  # all of `out` is a good deal more
        return Made(made, [*sums, time.perf_counter() - started])

    def _write(self, target: Target, number: int, window: Window, made: Made, helpers: ThreadPoolExecutor) -> str:
        target.put(number, window.scaled(self._upscaler.scale), made.pixels, made.sums, helpers)
        self.kept = len(target.done)
        return ""

    def _line(self, sums: list[list[float]]) -> str:
        area, work, error, seconds = (math.fsum(column) for column in zip(*sums, strict=True))
        source, scale = self._source, self._upscaler.scale
        words = [
            f"{self._job.name}: {source.width}x{source.height} -> {source.width * scale}x{source.height * scale}",
            counted(len(sums)),
            f"{seconds:.2f} s",
            f"{work / area:.1%} of the computation",
        ]
        if error > 0:
            words.append(f"{-10 * math.log10(error / area):.1f} dB expected to full depth")
        return ", ".join([*words, f"backend {self._upscaler.backend}"])


def sides_of(step: int, margin: int, scale: int, pixel_bytes: int) -> tuple[int, int]:
    """Sides of the windows, in pixels of the image, and of the tiles of the result, in pixels of that.

    Fixed by the network and the kind of image alone, so that an interrupted run finds the same.
    step, margin: of `Parts`. pixel_bytes: of a pixel of the image.
    """
    unit = math.lcm(step, 16)  # sides of tiles are multiples of 16
    unit *= max(1, round(TILE / (unit * scale)))
    fitting = math.isqrt(RUN_BYTES // (scale**2 * pixel_bytes)) - 2 * margin
    return unit * max(1, round(LEAST / unit), fitting // unit), unit * scale


def counted(windows: int) -> str:
    """So many windows, in words."""
    return f"{windows} window{'' if windows == 1 else 's'}"


def _within(pixels: np.ndarray, part: Window, whole: Window) -> np.ndarray:
    """The pixels of a part, of those of `whole`."""
    top, left = part.top - whole.top, part.left - whole.left
    return pixels[top : top + part.height, left : left + part.width]
