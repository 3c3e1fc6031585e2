"""Pictures upscaled by the workers of a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import closing

import ape_kernels
from ape_sr.folder.jobs import Job
from ape_sr.many.cluster import Cluster
from ape_sr.many.handing import GivenUp, hand_out
from ape_sr.many.worker import Record, Upscaling


def upscale_jobs(
    cluster: Cluster, args: argparse.Namespace, jobs: list[Job], alone: bool
) -> Generator[tuple[Job, Record], None, None]:
    """Do all jobs; gives each with its record, as they end. See `hand_out` for what becomes of those that are lost.

    args: of `ape-sr upscale`. alone: whether there is one image, which was given itself.
    """
    actors = cluster.start(Upscaling, args, alone, ape_kernels.__version__)
    with closing(hand_out(actors, jobs)) as results:
        for job, record in results:
            if isinstance(record, GivenUp):
                record = Record("failed", f"{job.source}: {record.line}")
            yield job, record
