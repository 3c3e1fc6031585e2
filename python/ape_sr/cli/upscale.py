"""`ape-sr upscale`: upscale one image or a folder of images."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ape_sr.cli.arguments import Commands, fidelity, fraction, non_negative_float
from ape_sr.cli.network import add_network_arguments, open_network, weights_path
from ape_sr.data.images import SUFFIXES, check_output_suffix, list_images, read_image, read_note, write_image
from ape_sr.distributed import ranks_from_environment
from ape_sr.errors import UserError
from ape_sr.files import remove_leftovers
from ape_sr.fits import digest_of
from ape_sr.upscaler import Upscaler


@dataclass(frozen=True)
class Job:
    """One image: where it is read, and where the picture and its exit map go."""

    source: Path
    picture: Path
    exits: Path


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "upscale",
        help="upscale an image or a folder of images",
        description="Upscale an image or a folder of images. With weights that carry a fit (ape-sr fit), each part "
        "of an image takes as few layers as --fidelity or --budget allow; without a fit all of them. --threshold and "
        "--min-gain-db are the paper's way instead: patches leave where more layers are predicted to bring little. If a folder was interrupted, give the same command again: it "
        "goes on where it stopped. Under torchrun the processes share the images of a folder.",
    )
    parser.set_defaults(run=run)
    formats = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help=f"image ({formats}), or folder of images; folders inside it are left out",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="file to write, or folder (made if needed), where the pictures are called NAME_xSCALE.png",
    )
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--fidelity",
        type=fidelity,
        default="auto",
        help="dB from 20 to 80 that each part is to have to full depth, or full (of the fit, without one full)",
    )
    policy.add_argument("--threshold", type=fraction, help="capacity below which a patch leaves, from 0 (never) to 1")
    policy.add_argument("--min-gain-db", type=non_negative_float, help="the same as dB that a stage must bring")
    policy.add_argument("--budget", type=fraction, help="share of all work that each image may take at most")
    parser.add_argument(
        "--exit-map", action="store_true", help="also write a picture of how deep each part ran, brighter for more work"
    )
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Upscale. An image of a folder that fails is reported, and the others are done."""
    if not args.input.exists():
        raise UserError(f"input: no such file or folder: {args.input}")
    upscaler = open_network(
        args,
        threshold=args.threshold,
        min_gain_db=args.min_gain_db,
        fidelity=args.fidelity,
        budget=args.budget,
    )
    ranks = ranks_from_environment()
    folder = args.input.is_dir()
    jobs = plan(args.input, args.output, upscaler.scale)
    settings = describe(upscaler, weights_path(args)) if folder else None
    jobs = jobs[ranks.rank :: ranks.world]
    if jobs:
        _create(jobs[0].picture.parent)
    failures = 0
    for job in tqdm(jobs, unit="image", disable=None if folder and ranks.leads else True):
        if not folder:
            print(f"{job.source.name}: upscaling x{upscaler.scale} ...", file=sys.stderr)
        try:
            line = upscale(upscaler, job, args.exit_map, settings)
        except UserError as error:
            if not folder:
                raise
            failures += 1
            tqdm.write(f"ape-sr: error: {error}", file=sys.stderr)
        else:
            tqdm.write(line)
            if not folder:
                print("written:", *([job.picture, job.exits] if args.exit_map else [job.picture]))
    if failures:
        raise UserError(f"{failures} of {len(jobs)} images could not be upscaled")


def describe(upscaler: Upscaler, weights: Path) -> dict[str, object]:
    """All that a picture depends on but the image itself."""
    network = upscaler.network
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "context": network.context,
        "fidelity": network.fidelity,
        "fit": None if network.fit is None else digest_of(network.fit),
        "threshold": network.threshold,
        "budget": network.budget,
        "backend": upscaler.backend,
        "dtype": str(network.dtype),
    }


def plan(source: Path, output: Path, scale: int) -> list[Job]:
    """What is read and written; UserError if a result would overwrite another or an input."""
    if source.is_dir():
        if output.is_file() or (output.suffix.lower() in SUFFIXES and not output.is_dir()):
            raise UserError(f"output: expected a folder, as the input is one, got {output}")
        jobs = [_job_in_folder(path, output, scale) for path in list_images(source)]
    elif output.is_dir() or (not output.suffix and not output.exists()):
        jobs = [_job_in_folder(source, output, scale)]
    else:
        check_output_suffix(output)
        jobs = [Job(source, output, output.with_name(f"{output.stem}_exits.png"))]
    targets = Counter(path.resolve() for job in jobs for path in (job.picture, job.exits))
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        if targets[job.picture.resolve()] > 1:
            same = ", ".join(other.source.name for other in jobs if other.picture == job.picture)
            raise UserError(f"input: {same} would all be written to {job.picture}; rename them or move them apart")
        for target in (job.picture, job.exits):
            if target.resolve() in sources:
                raise UserError(f"output: {target} is an input and would be overwritten; choose another folder or name")
    return jobs


def upscale(upscaler: Upscaler, job: Job, exit_map: bool, settings: dict[str, object] | None = None) -> str:
    """Do one job; returns the line that reports it.

    settings: for a folder, what `describe` says. The result then carries them and the identity of its source. A result
    that is there with the same ones is left alone.
    """
    note = None
    if settings is not None:
        source = job.source.stat()
        identity = {"source": job.source.name, "bytes": source.st_size, "modified": source.st_mtime_ns}
        note = json.dumps(settings | identity)
        for target in (job.picture, job.exits):
            remove_leftovers(target)
        if read_note(job.picture) == note and (job.exits.is_file() or not exit_map):
            return f"{job.source.name}: done already"
    image = read_image(job.source)
    picture, report = upscaler.upscale(image, return_report=True)
    if exit_map:
        write_image(job.exits, upscaler.exit_map(picture, report))
    write_image(job.picture, picture, note)
    sizes = " -> ".join(f"{side.shape[1]}x{side.shape[0]}" for side in (image, picture))
    return f"{job.source.name}: {sizes}, {report}"


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be created: {error.strerror}") from None


def _job_in_folder(source: Path, folder: Path, scale: int) -> Job:
    name = f"{source.stem}_x{scale}"
    return Job(source, folder / f"{name}.png", folder / f"{name}_exits.png")
