"""`upscale_many`: a folder, a list or a data set on a Ray cluster, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ape_sr.folder.jobs import Job
    from ape_sr.many.run import Outcome
    from ape_sr.many.worker import Record

PathLike = str | os.PathLike[str]


class Settings(TypedDict, total=False):
    """Options of `ape-sr upscale`, by the same names and with the same meaning."""

    recursive: bool
    format: str
    quality: int
    first_frame: bool
    max_pixels: int
    fidelity: float | str | None
    threshold: float
    min_gain_db: float
    budget: float
    exit_map: bool
    weights: PathLike
    scale: float
    width: int
    height: int
    exit_every: int
    res_scale: float
    backend: str
    dtype: str


def upscale_many(
    paths: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    address: str | None = None,
    tell: Callable[[Job, Record, Outcome], None] | None = None,
    **settings: Unpack[Settings],
) -> Outcome:
    """Upscale images on a Ray cluster, as ``ape-sr upscale --ray`` does; see docs/scale.md.

    paths: an image, folder, or list (.txt, .parquet), or several; paths, or addresses such as "s3://bucket/photos".
    out: folder or address for the results and report.parquet; None: the results stand beside the inputs.
    address: of the cluster, "auto" or HOST:PORT; None: the one that this process is connected to, else one of this
        machine, which ends with the call.
    tell: called with each job, its record as in the report, and the outcome so far, as they come.
    settings: of the command, such as ``weights="edsr-12x32-x4"``, ``fidelity=40``, ``exit_map=True``.

    Returns an outcome: ``states`` counts images that are "done", "found" (done before), "passed" (over) and "failed";
    ``failures`` has a line for each of the last; ``report`` is the file with a row per image; ``megapixels``,
    ``seconds``. Given again, a call that was interrupted goes on.
    Raises UserError as the command does: for inputs that are not there, settings that are wrong, a cluster that cannot
    be reached; TypeError for an unknown setting.
    """
    from ape_sr.cli.main import parse
    from ape_sr.cli.upscale import any_size, prepared
    from ape_sr.distributed import wants_gpu
    from ape_sr.many.cluster import joined_cluster
    from ape_sr.many.run import run_jobs
    from ape_sr.places import place

    unknown = sorted(settings.keys() - Settings.__annotations__.keys())
    if unknown:
        raise TypeError(f"settings: expected {', '.join(Settings.__annotations__)}, got {', '.join(unknown)}")
    options = [text for name, value in settings.items() for text in _option(name, value)]
    args = parse(["upscale", *options])
    args.input = [place(str(path)) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    args.output, args.ray = None if out is None else place(str(out)), address or ""
    with any_size():
        run = prepared(args, args.input)
    with joined_cluster(address, wants_gpu(args.backend)) as cluster:
        outcome = run_jobs(cluster, args, run.jobs, run.alone, tell or (lambda *_: None))
    outcome.failures[:0] = run.inputs.faults
    return outcome


def _option(name: str, value: object) -> list[str]:
    if name == "fidelity" and value is None:  # as for `ape_sr.load`
        value = "full"
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return []
    return [flag] if value is True else [f"{flag}={value}"]
