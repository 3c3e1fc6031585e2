"""`ape-sr upscale --ray`: the images on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from ape_sr.errors import UserError

if TYPE_CHECKING:
    from ape_sr.folder.jobs import Job
    from ape_sr.many.run import Outcome
    from ape_sr.many.worker import Record

BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images, {rate_noinv_fmt}{postfix}, {elapsed}, {remaining} left"


def run_on_ray(args: argparse.Namespace, jobs: list[Job], alone: bool, say: Callable[[str, TextIO], None]) -> list[str]:
    """Do all jobs on the cluster that --ray means; the lines of those that failed. say: prints a line above the bar.

    An image alone that fails ends the command with its line.
    """
    from tqdm import tqdm

    from ape_sr.distributed import wants_gpu
    from ape_sr.many.cluster import joined_cluster
    from ape_sr.many.run import run_jobs

    def tell(job: Job, record: Record, outcome: Outcome) -> None:
        bar.set_postfix_str(f"{outcome.megapixels / outcome.seconds:.3g} megapixels/s", refresh=False)
        bar.update()
        if record.state != "failed":
            say(record.line, sys.stdout)
        elif alone:
            raise UserError(record.line)
        else:
            say(f"ape-sr: error: {record.line}", sys.stderr)
        if alone:
            written = [job.picture, job.exits] if args.exit_map else [job.picture]
            say(" ".join(["written:", *map(str, written)]), sys.stdout)

    with joined_cluster(args.ray or None, wants_gpu(args.backend)) as cluster:
        say(cluster.describe(), sys.stderr)
        with tqdm(total=len(jobs), bar_format=BAR, unit=" images", smoothing=0, disable=None) as bar:
            outcome = run_jobs(cluster, args, jobs, alone, tell)
    if not alone:
        say(_describe(outcome), sys.stderr)
    return outcome.failures


def _describe(outcome: Outcome) -> str:
    done, found, seconds = outcome.states["done"], outcome.states["found"], outcome.seconds
    if found and not done:
        line = f"{found} of {sum(outcome.states.values())} images were done already"
    else:
        line = f"{done} images in {seconds:.2f} s{f', {found} done already' if found else ''}"
    if done:
        line += f"; {done / seconds:.3g} images/s, {outcome.megapixels / seconds:.3g} megapixels/s"
    return f"{line}; report: {outcome.report}"
