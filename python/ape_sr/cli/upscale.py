"""`ape-sr upscale`: enlarge one picture or a folder of them."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from ape_kernels import APEForward, PatchGrid
from ape_kernels.policy import threshold_from_gain
from ape_sr.cli.arguments import Commands, fraction, non_negative_float
from ape_sr.cli.network import add_network_arguments, open_network, weights_path
from ape_sr.data.images import (
    SUFFIXES,
    check_output_suffix,
    list_images,
    read_image,
    read_note,
    to_image,
    to_tensor,
    write_image,
)
from ape_sr.distributed import ranks_from_environment
from ape_sr.errors import UserError
from ape_sr.files import remove_leftovers
from ape_sr.models import ExitNetwork


@dataclass(frozen=True)
class Job:
    """One picture: where it is read and where the result and its exit map go."""

    source: Path
    picture: Path
    exits: Path


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "upscale",
        help="enlarge a picture or a folder of pictures",
        description="Enlarge a picture or a folder of pictures. Every patch leaves the network as soon as more "
        "layers are predicted to bring little; --threshold or --min-gain-db say how little (default: as trained). "
        "--budget bounds the work on each picture instead. A folder that was interrupted goes on where it stopped when "
        "the same command is given again; under torchrun the processes share its pictures.",
    )
    parser.set_defaults(run=run)
    formats = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help=f"picture ({formats}), or folder of pictures; sub folders are left out",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="picture, or folder (created if needed), where the results are called NAME_xSCALE.png",
    )
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--threshold", type=fraction, help="capacity below which a patch leaves, 0 (never) to 1")
    policy.add_argument("--min-gain-db", type=non_negative_float, help="the same as dB a stage must bring")
    parser.add_argument(
        "--budget",
        type=fraction,
        help="share of the network's body that each picture may take at most, spent where most is to be gained",
    )
    parser.add_argument("--exit-map", action="store_true", help="also write where patches left the network")
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Upscale; a picture of a folder that fails is reported, the others are done."""
    if not args.input.exists():
        raise UserError(f"input: no such file or folder: {args.input}")
    network = open_network(args)
    try:
        if args.budget is not None:
            network.threshold, network.budget = 0.0, args.budget
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.threshold is not None:
        network.threshold = args.threshold
    elif args.min_gain_db is not None:
        network.threshold = threshold_from_gain(args.min_gain_db)
    ranks = ranks_from_environment()
    folder = args.input.is_dir()
    jobs = plan(args.input, args.output, network.scale)
    settings = describe(network, weights_path(args)) if folder else None
    jobs = jobs[ranks.rank :: ranks.world]
    if jobs:
        _create(jobs[0].picture.parent)
    failures = 0
    for job in tqdm(jobs, unit="image", disable=None if folder and ranks.leads else True):
        if not folder:
            print(f"{job.source.name}: upscaling x{network.scale} ...", file=sys.stderr)
        try:
            line = upscale(network, job, args.exit_map, settings)
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


def describe(network: APEForward, weights: Path) -> dict[str, object]:
    """All that a result depends on but the picture itself."""
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "threshold": network.threshold,
        "budget": network.budget,
        "backend": network.backend,
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


def upscale(network: APEForward, job: Job, exit_map: bool, settings: dict[str, object] | None = None) -> str:
    """Do one job; returns the line that reports it.

    settings: what `describe` says, for a folder: the result then carries them and the identity of its source, and is
    left alone where it is there with the same ones already.
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
    rgb_range = cast(ExitNetwork, network.model).rgb_range
    device = next(network.parameters()).device
    started = time.perf_counter()
    with torch.inference_mode():
        sr, report = network(to_tensor(image, rgb_range).to(device), return_report=True)
    picture = to_image(sr, rgb_range)
    seconds = time.perf_counter() - started
    stages = len(report.patches_per_exit)
    if exit_map:
        # only here: it takes as long to import as a small picture to upscale
        from ape_sr.exit_map import draw_exit_map

        height, width = image.shape[:2]
        grid = PatchGrid(height, width, network.patch_size, network.overlap, network.scale)
        drawn = draw_exit_map(picture, report.exit_index[0].cpu().numpy(), grid, stages, report.share)
        write_image(job.exits, drawn)
    write_image(job.picture, picture, note)
    sizes = " -> ".join(f"{side.shape[1]}x{side.shape[0]}" for side in (image, picture))
    return (
        f"{job.source.name}: {sizes}, {seconds:.2f} s, {report.share:.1%} of the computation, "
        f"mean exit {report.mean_exit:.2f} of 0..{stages - 1}, backend {network.backend}"
    )


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be created: {error.strerror}") from None


def _job_in_folder(source: Path, folder: Path, scale: int) -> Job:
    name = f"{source.stem}_x{scale}"
    return Job(source, folder / f"{name}.png", folder / f"{name}_exits.png")
