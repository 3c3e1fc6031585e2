"""`ape-sr upscale` of one TIFF file by windows: asked for with --windows, and by itself where the file is large."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from ape_sr.errors import UserError
from ape_sr.pictures.formats import BY_NAME

if TYPE_CHECKING:
    from ape_sr.cli.upscale import Networks
    from ape_sr.folder.jobs import Job
    from ape_sr.folder.sizes import Size
    from ape_sr.giant.run import Elsewhere
    from ape_sr.upscaler import Upscaler

LARGE = 50_000_000  # pixels: a TIFF file of more goes by windows wherever it can
BAR = "{percentage:3.0f}%|{bar}| {n:.3g} of {total:.3g} megapixels, {elapsed}, {remaining} left"


def goes_by_windows(args: argparse.Namespace, job: Job | None, size: Size, upscaler: Upscaler) -> bool:
    """Whether an image does. job: of the one input if it is one alone.

    UserError if --windows asks for it and it cannot be done.
    """
    suffixes = BY_NAME["tif"].suffixes
    if not args.windows and (job is None or job.source.suffix.lower() not in suffixes):
        return False
    reason = _why_not(args, job, size, upscaler)
    if args.windows:
        if reason is not None:
            raise UserError(f"windows: {reason}")
        return True
    if job is None or reason is not None:
        return False
    from ape_sr.giant.source import Source

    with closing(Source(job.source)) as source:
        return source.width * source.height > LARGE


def _why_not(args: argparse.Namespace, job: Job | None, size: Size, upscaler: Upscaler) -> str | None:
    """Why an image cannot go by windows, None if it can. Reads the file last."""
    if job is None:
        return "expected one TIFF file as the input, got a folder or several"
    if job.picture.suffix.lower() not in BY_NAME["tif"].suffixes:
        return f"expected an output file ending in .tif, got {job.picture.name}"
    if args.exit_map:
        return "expected no --exit-map, which is drawn of the whole picture"
    scale = upscaler.scale
    if size.width is not None or size.height is not None or size.factor not in (None, scale):
        return f"expected the scale of the network, {scale}, as pictures are resized as a whole"
    runner = upscaler.network.runner()
    if runner.cut is not None:
        return f"expected a network that runs images on shared feature maps: {runner.why_patches}"
    from ape_sr.giant.source import why_not

    found = why_not(job.source, args.first_frame)
    return None if found is None else f"{job.source}: {found}"


def run_by_windows(
    args: argparse.Namespace,
    job: Job,
    networks: Networks,
    settings: dict[str, object],
    say: Callable[[str, TextIO], None],
) -> None:
    """Upscale the image of a job, or go on with it, by the workers of a cluster with --ray; say what becomes of it.

    settings: all that the result depends on.
    """
    from tqdm import tqdm

    from ape_sr.folder.work import note_of
    from ape_sr.giant.run import Windowed, counted
    from ape_sr.pictures.read import read_note

    upscaler, note = networks.default, note_of(job, settings)
    if read_note(job.picture) == note:
        say(f"{job.name}: done already", sys.stdout)
        return
    bar: tqdm[Any] = tqdm(total=0, bar_format=BAR, smoothing=0, disable=None)

    def begun(count: int, before: int) -> None:
        found = f", {before} of them done before" if before else ""
        say(f"{job.name}: upscaling x{upscaler.scale} by {counted(count)}{found} ...", sys.stderr)

    windowed = Windowed(job, upscaler, note, begun, lambda pixels: _move(bar, pixels / 1e6))
    bar.reset(windowed.pixels / 1e6)
    try:
        with bar, _workers(args, job, networks, say) as elsewhere:
            line = windowed.run(elsewhere)
    except BaseException:
        if windowed.kept:
            say(
                f"{job.name}: {windowed.kept} of {counted(windowed.count)} are kept; "
                "give the same command again and it goes on",
                sys.stderr,
            )
        raise
    say(line, sys.stdout)
    say(f"written: {job.picture}", sys.stdout)


@contextmanager
def _workers(
    args: argparse.Namespace, job: Job, networks: Networks, say: Callable[[str, TextIO], None]
) -> Generator[Elsewhere | None, None, None]:
    """Those of the cluster that --ray means; None without it."""
    if args.ray is None:
        yield None
        return
    from ape_sr.distributed import wants_gpu
    from ape_sr.many.cluster import joined_cluster

    with joined_cluster(args.ray or None, wants_gpu(args.backend)) as cluster:
        from ape_sr.giant.cluster import make_windows

        say(cluster.describe(), sys.stderr)
        yield partial(make_windows, cluster, args, job, networks.settings())


def _move(bar: Any, megapixels: float) -> None:
    """The bar to so many, never back."""
    if megapixels > bar.n:
        bar.update(megapixels - bar.n)
