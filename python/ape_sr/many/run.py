"""Pictures upscaled by the workers of a cluster."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from ape_sr.files import remove_leftovers
from ape_sr.folder.jobs import Job
from ape_sr.many.cluster import Cluster
from ape_sr.many.handing import GivenUp, hand_out
from ape_sr.many.report import NAME, report_to
from ape_sr.many.worker import Record, Upscaling


@dataclass
class Outcome:
    """What became of all pictures.

    states: how many are of each state of `Record`. failures: a line for each that failed. megapixels: of the inputs
    that were done now. seconds: from the start of the workers to the last record. report: the file with a row per
    picture.
    """

    states: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    megapixels: float = 0
    seconds: float = 0
    report: Path | None = None


def run_jobs(
    cluster: Cluster,
    args: argparse.Namespace,
    jobs: list[Job],
    alone: bool,
    tell: Callable[[Job, Record, Outcome], None],
) -> Outcome:
    """Do all jobs, and write the report with the results.

    args: of `ape-sr upscale`. alone: whether there is one image, which was given itself; then there is no report.
    tell: called with each record as it comes, and the outcome so far.
    """
    started = perf_counter()
    outcome = Outcome(report=None if alone else (args.output or Path()) / NAME)
    with (
        nullcontext() if outcome.report is None else report_to(outcome.report) as report,
        closing(_records(cluster, args, jobs, alone)) as records,
    ):
        for job, record in records:
            outcome.states[record.state] += 1
            outcome.megapixels += record.width * record.height / 1e6
            outcome.seconds = perf_counter() - started
            if record.state == "failed":
                outcome.failures.append(record.line)
            if report is not None:
                report.add(job, record)
            tell(job, record, outcome)
    remove_leftovers(target for job in jobs for target in (job.picture, job.exits))  # of workers that were killed
    return outcome


def _records(
    cluster: Cluster, args: argparse.Namespace, jobs: list[Job], alone: bool
) -> Generator[tuple[Job, Record], None, None]:
    with (
        cluster.actors(Upscaling, args, alone) as actors,
        closing(hand_out(actors, jobs)) as results,
    ):
        for job, record in results:
            if isinstance(record, GivenUp):
                record = Record("failed", f"{job.source}: {record.line}")
            yield job, record
