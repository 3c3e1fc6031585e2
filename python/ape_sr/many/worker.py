"""The actor that upscales: it opens the network once, then does to its jobs what the plain command does."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event, Lock

from PIL import Image

from ape_sr.folder.jobs import Job
from ape_sr.folder.work import Options, Result, Work
from ape_sr.many.cluster import Setting
from ape_sr.pipeline import Done, run_stages
from ape_sr.places import tidy
from ape_sr.upscaler import Upscaler


@dataclass(frozen=True)
class Record:
    """What became of one picture.

    state: "done", "found" (done before), "passed" (over, as a result itself) or "failed".
    line: for a person; what went wrong if it failed.
    The rest is 0 or empty of those that were not done now. width, height: of the input. seconds: that it took, with
    files. share: of the computation. fidelity: in dB to full depth, as predicted, infinite at full depth; None without
    a plan. exits: patches per exit. interpolated: patches that were.
    """

    state: str
    line: str
    width: int = 0
    height: int = 0
    seconds: float = 0
    share: float = 0
    fidelity: float | None = None
    exits: list[int] = field(default_factory=list[int])
    interpolated: int = 0


class _Stopped(Exception):
    pass


class _Recorded(Work):
    """The work, of which each picture leaves a record until it is fetched."""

    def __init__(self, options: Options, networks: Callable[[float | None, str], Upscaler]) -> None:
        super().__init__(options, networks)
        self._records: dict[Job, Record] = {}

    def record_of(self, done: Done[Job]) -> Record:
        """Of a job that is over."""
        record = self._records.pop(done.job, None)
        if done.error is not None:
            return Record("failed", str(done.error))
        if record is None:
            record = Record("found" if done.line == self.done_before(done.job) else "passed", done.line)
        return record

    def write(self, job: Job, result: Result, helpers: ThreadPoolExecutor) -> str:
        """As the plain command's."""
        started = time.perf_counter()
        line = super().write(job, result, helpers)
        report = result.report
        self._records[job] = Record(
            "done",
            line,
            *result.size,
            seconds=report.seconds + time.perf_counter() - started,
            share=report.share,
            fidelity=None if report.plan is None else float(report.plan.picture_fidelity.mean()),
            exits=report.patches_per_exit.tolist(),
            interpolated=report.interpolated,
        )
        return line


class Upscaling:
    """A `Worker` of jobs. args: of the command. alone: whether there is one image, which was given itself."""

    def __init__(self, setting: Setting, args: argparse.Namespace, alone: bool) -> None:
        setting.apply()
        self._setting, self._args, self._alone = setting, args, alone
        self._stopped, self._running = Event(), Lock()
        self._work: _Recorded | None = None

    def ready(self) -> None:
        """Open the network. UserError as the command has it, and for another version of the package."""
        if self._work is not None:
            return
        self._setting.check_version()
        from ape_sr.cli.upscale import Networks, options_of

        Image.MAX_IMAGE_PIXELS = None  # --max-pixels instead
        warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF data
        networks = Networks(self._args)
        work = _Recorded(options_of(self._args, networks, self._alone), networks)
        work.progress = self._check_stopped
        self._work = work

    def run(self, jobs: list[Job]) -> Iterator[Record]:
        """A record of each job, as soon as it is over."""
        assert self._work is not None, "ready comes first"
        self._setting.apply_threads()
        with self._running, closing(run_stages(jobs, self._work.stages())) as results:
            try:
                for done in results:
                    yield self._work.record_of(done)
                    self._check_stopped(0)
            except _Stopped:
                pass

    def stop(self) -> None:
        """End what is running before its next result, and wait for that."""
        self._stopped.set()
        with self._running:
            tidy()

    def _check_stopped(self, images: float) -> None:
        if self._stopped.is_set():
            raise _Stopped
