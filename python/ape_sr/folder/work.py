"""What is done to one image: it is read, upscaled and written. The time of each part is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

from ape_sr.errors import UserError, memory_for
from ape_sr.files import check_writable
from ape_sr.folder.jobs import Job
from ape_sr.folder.sizes import Size
from ape_sr.pictures.formats import check_fits, check_frames, format_of
from ape_sr.pictures.frames import Carried, Frame, ImageFile
from ape_sr.pictures.read import read_file, read_note
from ape_sr.pictures.resize import lanczos
from ape_sr.pictures.write import write_picture
from ape_sr.pipeline import Stages
from ape_sr.places import Url, local_copy, local_target

if TYPE_CHECKING:  # PyTorch comes with it
    import numpy as np

    from ape_sr.upscaler import Report, Upscaler


@dataclass(frozen=True)
class Options:
    """What the user wants of all images. settings: all else that a result depends on, for its note."""

    size: Size
    settings: dict[str, object]
    exit_map: bool = False
    first_frame: bool = False
    quality: int | None = None
    max_pixels: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Item:
    """A file that was read, with its first frame, which says how large it is. seconds: that reading took."""

    file: ImageFile
    first: Frame
    note: str
    seconds: float


@dataclass(frozen=True)
class Result:
    """What is to be written. size: of the input, width and height. exits: the exit map."""

    frames: list[Frame]
    carried: Carried
    note: str
    size: tuple[int, int]
    left_out: int
    exits: np.ndarray | None
    report: Report


@dataclass
class Seconds:
    """Seconds of each part, added up over the images."""

    read: float = 0
    network: float = 0
    write: float = 0
    lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, part: str, seconds: float) -> None:
        """Add to the part of this name. From any thread."""
        with self.lock:
            setattr(self, part, getattr(self, part) + seconds)


class Work:
    """The stages of a run.

    networks: gives the network for a factor, or the one that there is for None; its other argument names the image.
    announce: called before the network begins. progress: how far the network is, in images, told by the thread that
    computes; may be set.
    """

    def __init__(
        self,
        options: Options,
        networks: Callable[[float | None, str], Upscaler],
        announce: Callable[[Job], None] | None = None,
    ) -> None:
        self.options, self.networks, self.announce = options, networks, announce
        self.progress: Callable[[float], None] = lambda images: None
        self.seconds = Seconds()
        self._computed = 0

    @staticmethod
    def done_before(job: Job) -> str:
        """The line of a job whose result is there already."""
        return f"{job.name}: done already"

    def stages(self) -> Stages[Job, Item, Result]:
        """The stages of a job, for `run_stages`."""
        return Stages(self.read, self.weigh, self.compute, self.write)

    def read(self, job: Job) -> Item | str:
        """What is in the file; a line instead if its result is there already."""
        if job.fault is not None:
            raise UserError(job.fault)
        started = time.perf_counter()
        note = note_of(job, self.options.settings)
        if (
            self.options.resume
            and read_note(job.picture) == note
            and (job.exits.is_file() or not self.options.exit_map)
        ):
            return self.done_before(job)
        with local_copy(job.source) as source:
            if isinstance(job.source, Url) and self.options.resume and read_note(source) is not None:
                return f"{job.name}: passed over, a result of ape-sr"  # of other files it is known beforehand
            file = read_file(source, max_pixels=self.options.max_pixels, first_frame=self.options.first_frame)
            if source != job.source:  # which is removed
                file = replace(file, frames=list(file.frames))
        frames = iter(file.frames)
        first = next(frames)
        seconds = time.perf_counter() - started
        self.seconds.add("read", seconds)
        return Item(replace(file, frames=frames), first, note, seconds)

    def weigh(self, job: Job, item: Item) -> int:
        """Bytes of the result. UserError if it cannot be written there, before the network has done anything."""
        form = format_of(job.picture)
        height, width = item.first.pixels.shape[:2]
        upscaler = self.networks(self.options.size.factor_for(width, height), job.name)
        sides = self.options.size.sides(width, height, upscaler.scale)
        check_fits(job.picture, form, *sides)
        if not self.options.first_frame:
            check_frames(job.picture, form, item.file.kind, item.file.count)
        for target in (job.picture, job.exits) if self.options.exit_map else (job.picture,):
            if not isinstance(target, Url):
                check_writable(target, "output")
        return item.first.pixels.nbytes * sides[0] * sides[1] * item.file.count // (width * height)

    def compute(self, job: Job, item: Item) -> Result:
        """Every frame upscaled."""
        if self.announce is not None:
            self.announce(job)
        with memory_for(job.source):
            result = self._compute(job, item)
        self._computed += 1
        return result

    def _compute(self, job: Job, item: Item) -> Result:
        from ape_sr.upscaler import add_reports

        height, width = item.first.pixels.shape[:2]
        upscaler = self.networks(self.options.size.factor_for(width, height), job.name)
        frames: list[Frame] = []
        reports: list[Report] = []
        exits = None
        for number, frame in enumerate((item.first, *item.file.frames)):

            def told(share: float, number: int = number) -> None:
                self.progress(self._computed + (number + share) / max(item.file.count, number + 1))

            pixels, report = upscaler.upscale(frame.pixels, return_report=True, progress=told)
            if self.options.exit_map and exits is None:
                exits = upscaler.exit_map(pixels, report)
            height, width = frame.pixels.shape[:2]
            frames.append(
                Frame(lanczos(pixels, *self.options.size.sides(width, height, upscaler.scale)), frame.duration)
            )
            reports.append(report)
        report = add_reports(reports)
        self.seconds.add("network", report.seconds)
        report = replace(report, seconds=report.seconds + item.seconds)
        size = (item.first.pixels.shape[1], item.first.pixels.shape[0])
        left_out = item.file.count - len(frames)
        return Result(frames, item.file.carried, item.note, size, left_out, exits, report)

    def write(self, job: Job, result: Result, helpers: ThreadPoolExecutor) -> str:
        """The files; gives the line that reports them."""
        started = time.perf_counter()
        if result.exits is not None:
            note = json.dumps({"exit map of": job.name})
            with local_target(job.exits) as target:
                write_picture(target, [Frame(result.exits)], note=note, threads=helpers)
        quality = self.options.quality
        with local_target(job.picture) as target:
            lost = write_picture(
                target, result.frames, result.carried, note=result.note, quality=quality, threads=helpers
            )
        seconds = time.perf_counter() - started
        self.seconds.add("write", seconds)
        height, width = result.frames[0].pixels.shape[:2]
        count = len(result.frames)
        words = [f"{job.name}: {result.size[0]}x{result.size[1]} -> {width}x{height}"]
        if count > 1:
            words.append(f"{count} frames")
        if result.left_out:
            words.append(f"first of {count + result.left_out} frames")
        words.append(str(replace(result.report, seconds=result.report.seconds + seconds)))
        return ", ".join([*words, *lost])


def note_of(job: Job, settings: dict[str, object]) -> str:
    """All that a result depends on. UserError if the source is gone."""
    if isinstance(job.source, Url):
        size, modified = job.source.identity()
    else:
        try:
            source = job.source.stat()
        except OSError as error:
            raise UserError(f"{job.source}: cannot be read: {error.strerror or error}") from None
        size, modified = source.st_size, source.st_mtime_ns
    return json.dumps(settings | {"source": job.name, "bytes": size, "modified": modified})
