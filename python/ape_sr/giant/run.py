"""A run by windows: one after the other, or by the workers of a cluster, whatever the size of the image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import ape_kernels
from ape_kernels.run.windows import Window
from ape_sr.errors import memory_for
from ape_sr.folder.jobs import Job
from ape_sr.giant.tags import carried_tags
from ape_sr.giant.target import Layout, Target, packed
from ape_sr.giant.windows import Cut, Made, Packed, Seen
from ape_sr.pictures.colour import fitting_profile
from ape_sr.pictures.notes import as_text
from ape_sr.pipeline import Stages, run_stages

if TYPE_CHECKING:
    from ape_sr.upscaler import Upscaler

Elsewhere = Callable[[list[Window], int, float | None], Generator[Packed, None, None]]


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
        self._cut = Cut(job.source, upscaler)
        self.pixels = self._cut.source.width * self._cut.source.height
        self.count, self.kept = len(self._cut.windows), 0
        self._computed = 0  # pixels

    def run(self, elsewhere: Elsewhere | None = None) -> str:
        """Do the windows that are not done; gives the line that reports all.

        elsewhere: makes windows, given the sides of their tiles and what `Cut.asked` says, and gives them in their
        order. None: here.
        Whatever interrupts it, the windows that are done are kept for the next run.
        """
        with closing(self._cut), closing(self._target()) as target:
            self.kept = len(target.done)
            left = [number for number in range(self.count) if number not in target.done]
            self._computed = sum(int(entry.sums[0]) for entry in target.done.values())
            self._begun(self.count, self.kept)
            self._moved(self._computed)
            with memory_for(self._job.source):
                asked = self._cut.asked() if left else None
                if elsewhere is None:
                    self._run_here(target, left, asked)
                else:
                    windows = [self._cut.windows[number] for number in left]
                    with closing(elsewhere(windows, self._cut.tile, asked)) as results:
                        for number, made in zip(left, results, strict=True):
                            self._put(target, number, made)
                            self._computed += int(made.sums[0])
                            self._moved(self._computed)
                target.finish()
            return self._line([entry.sums for entry in target.done.values()])

    def _run_here(self, target: Target, left: list[int], asked: float | None) -> None:
        """In turn; reading and packing go on beside the network."""
        cut, windows = self._cut, self._cut.windows

        def compute(number: int, seen: Seen) -> Made:
            area = math.prod(windows[number][2:])
            made = cut.compute(
                windows[number], seen, asked, lambda share: self._moved(self._computed + int(share * area))
            )
            self._computed += area
            return made

        def write(number: int, made: Made, helpers: ThreadPoolExecutor) -> str:
            self._put(target, number, Packed(packed(made.pixels, cut.tile, helpers.map), made.sums))
            return ""

        stages = Stages[int, Seen, Made](
            lambda number: cut.read(windows[number]),
            lambda number, _: math.prod(windows[number][2:]) * cut.bytes_per_pixel,
            compute,
            write,
        )
        with closing(run_stages(left, stages, 2 * cut.side**2 * cut.bytes_per_pixel)) as results:
            for done in results:
                if done.error is not None:
                    raise done.error

    def _put(self, target: Target, number: int, made: Packed) -> None:
        at = self._cut.windows[number].scaled(self._upscaler.scale)
        target.put(number, at, made.tiles, made.sums)
        self.kept = len(target.done)

    def _target(self) -> Target:
        source, scale = self._cut.source, self._upscaler.scale
        layout = Layout(source.height * scale, source.width * scale, source.channels, source.dtype.name, self._cut.tile)
        identity = json.dumps({"note": self._note, "version": ape_kernels.__version__, "side": self._cut.side})
        icc = source.page.tags.valueof(34675)
        return Target(
            self._job.picture,
            layout,
            identity,
            note=as_text(self._note),
            icc=fitting_profile(icc if isinstance(icc, bytes) else None, source.channels),
            tags=carried_tags(source.page, scale),
        )

    def _line(self, sums: list[list[float]]) -> str:
        area, work, error, seconds = (math.fsum(column) for column in zip(*sums, strict=True))
        source, scale = self._cut.source, self._upscaler.scale
        words = [
            f"{self._job.name}: {source.width}x{source.height} -> {source.width * scale}x{source.height * scale}",
            counted(len(sums)),
            f"{seconds:.2f} s",
            f"{work / area:.1%} of the computation",
        ]
        if error > 0:
            words.append(f"{-10 * math.log10(error / area):.1f} dB expected to full depth")
        return ", ".join([*words, f"backend {self._upscaler.backend}"])


def counted(windows: int) -> str:
    """So many windows, in words."""
    return f"{windows} window{'' if windows == 1 else 's'}"
