"""`ape-sr upscale --ray`: the images on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TextIO

from ape_sr.errors import UserError

if TYPE_CHECKING:
    from ape_sr.folder.jobs import Job

BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images, {rate_fmt}{postfix}, {elapsed}, {remaining} left"


def run_on_ray(args: argparse.Namespace, jobs: list[Job], alone: bool, say: Callable[[str, TextIO], None]) -> list[str]:
    """Do all jobs on the cluster that --ray means; the lines of those that failed. say: prints a line above the bar.

    An image alone that fails ends the command with its line.
    """
    from tqdm import tqdm

    from ape_sr.distributed import wants_gpu
    from ape_sr.many.cluster import joined_cluster
    from ape_sr.many.report import NAME, report_to
    from ape_sr.many.run import upscale_jobs

    failures: list[str] = []
    states: Counter[str] = Counter()
    megapixels, count = 0.0, len(jobs)
    target = (args.output or Path()) / NAME
    with joined_cluster(args.ray or None, wants_gpu(args.backend)) as cluster:
        say(cluster.describe(), sys.stderr)
        started = perf_counter()
        bar = tqdm(total=count, bar_format=BAR, unit=" images", smoothing=0, disable=None)
        with (
            bar,
            nullcontext() if alone else report_to(target) as report,
            closing(upscale_jobs(cluster, args, jobs, alone)) as results,
        ):
            for job, record in results:
                states[record.state] += 1
                megapixels += record.width * record.height / 1e6
                bar.set_postfix_str(f"{megapixels / (perf_counter() - started):.3g} megapixels/s", refresh=False)
                bar.update()
                if report is not None:
                    report.add(job, record)
                if record.state == "failed":
                    if alone:
                        raise UserError(record.line)
                    failures.append(record.line)
                    say(f"ape-sr: error: {record.line}", sys.stderr)
                else:
                    say(record.line, sys.stdout)
                    if alone:
                        written = [job.picture, job.exits] if args.exit_map else [job.picture]
                        say(" ".join(["written:", *map(str, written)]), sys.stdout)
        seconds = perf_counter() - started
    if not alone:
        done, found = states["done"], states["found"]
        say(
            f"{done} images in {seconds:.2f} s, {done / seconds:.3g} images/s, {megapixels / seconds:.3g} megapixels/s"
            + (f"; {found} were done already" if found else "")
            + f"; report: {target}",
            sys.stderr,
        )
    return failures
