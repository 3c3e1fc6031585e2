"""An image cut into windows: each is read, planned, upscaled and packed by itself, wherever that is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ape_kernels.plan import Plan
from ape_kernels.run.parts import Parts
from ape_kernels.run.windows import Window
from ape_sr.errors import UserError
from ape_sr.giant.source import Source
from ape_sr.models.base import pixel_range
from ape_sr.pictures.planes import to_planes

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
    """A window's picture. sums: pixels, work as shares of full depth's, mean squares expected, and seconds."""

    pixels: np.ndarray
    sums: list[float]


@dataclass(frozen=True)
class Packed:
    """A window's picture as the tiles of the file, row by row. sums: see `Made`."""

    tiles: list[bytes]
    sums: list[float]


class Cut:
    """An image and its windows, open until `close`. The same of the same file and settings, in whatever process.

    source: the file. windows: by number. side, tile: sides of the windows, in pixels of the image, and of the tiles of
    the result, in pixels of that.

    Raises UserError for a network that shares no feature maps, and for what is wrong with the file.
    """

    def __init__(self, path: Path, upscaler: Upscaler) -> None:
        self._upscaler, self._runner = upscaler, upscaler.network.runner()
        if self._runner.cut is not None:
            raise UserError(
                f"windows: expected a network that runs images on shared feature maps: {self._runner.why_patches}"
            )
        self.source = source = Source(path)
        self._parts = Parts(self._runner, source.height, source.width)
        self._range = pixel_range(upscaler.network.model)
        self.side, self.tile = sides_of(
            self._parts.step, self._parts.margin, upscaler.scale, source.channels * source.dtype.itemsize
        )
        self.windows = [
            Window(top, left, min(self.side, source.height - top), min(self.side, source.width - left))
            for top in range(0, source.height, self.side)
            for left in range(0, source.width, self.side)
        ]

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    @property
    def bytes_per_pixel(self) -> int:
        """Of the result, for each pixel of the image."""
        return self._upscaler.scale**2 * self.source.channels * self.source.dtype.itemsize

    def asked(self) -> float | None:
        """What every window's plan is asked for, see `Parts`; a budget reads the whole image. None without plans."""
        return self._parts.asked(self._levels())

    def read(self, window: Window) -> Seen:
        """Read what a window needs. UserError for a file that is damaged there."""
        whole = self._parts.to_plan(self._parts.to_run(window))
        return Seen(whole, self.source.read(whole))

    def compute(
        self, window: Window, seen: Seen, asked: float | None, told: Callable[[float], None] | None = None
    ) -> Made:
        """Upscale a window. told: called with the share of it that is done."""
        started = time.perf_counter()
        to_run, scale = self._parts.to_run(window), self._upscaler.scale
        plan: Plan | None = None
        area = window.height * window.width
        sums = [float(area), float(area), 0.0]
        if asked is not None:
            plan = self._parts.plan(self._planes(seen.pixels), to_run, asked)
            sums[1:] = self._parts.within(plan, window, to_run)
        out = np.empty((to_run.height * scale, to_run.width * scale, seen.pixels.shape[2]), seen.pixels.dtype)
        self._upscaler.fill(_within(seen.pixels, to_run, seen.whole), out, told, plan)
        made = _within(out, window.scaled(scale), to_run.scaled(scale)).copy()  # all of `out` is a good deal more
        return Made(made, [*sums, time.perf_counter() - started])

    def _levels(self) -> Tensor | None:
        """What a budget is shared out by, of the whole image; None without one."""
        if self._runner.budget is None or not self._runner.plans:
            return None
        rows: dict[int, list[Tensor]] = {}
        for window in self.windows:
            pixels = self._planes(self.source.read(self._parts.to_plan(window)))
            rows.setdefault(window.top, []).append(self._parts.levels(pixels, window))
        return torch.cat([torch.cat(row, 1) for row in rows.values()])

    def _planes(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(to_planes(pixels, self._range)).to(self._runner.packed.weights.device)


def sides_of(step: int, margin: int, scale: int, pixel_bytes: int) -> tuple[int, int]:
    """Sides of the windows, in pixels of the image, and of the tiles of the result, in pixels of that.

    Fixed by the network and the kind of image alone, so that an interrupted run finds the same.
    step, margin: of `Parts`. pixel_bytes: of a pixel of the image.
    """
    unit = math.lcm(step, 16)  # sides of tiles are multiples of 16
    unit *= max(1, round(TILE / (unit * scale)))
    fitting = math.isqrt(RUN_BYTES // (scale**2 * pixel_bytes)) - 2 * margin
    return unit * max(1, round(LEAST / unit), fitting // unit), unit * scale


def _within(pixels: np.ndarray, part: Window, whole: Window) -> np.ndarray:
    """The pixels of a part, of those of `whole`."""
    top, left = part.top - whole.top, part.left - whole.left
    return pixels[top : top + part.height, left : left + part.width]
