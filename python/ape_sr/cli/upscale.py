"""`ape-sr upscale`: upscale images and folders of images."""

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ape_sr.cli.arguments import Commands, counted, fidelity, fraction, non_negative_float, positive_float, positive_int
from ape_sr.cli.many import run_on_ray
from ape_sr.cli.network import DEFAULT_SCALE, add_network_arguments, network_settings, open_network, weights_path
from ape_sr.cli.windows import LARGE, goes_by_windows, run_by_windows
from ape_sr.errors import UserError
from ape_sr.folder.sizes import Size, scale_that_suffices
from ape_sr.pictures.formats import BY_NAME, FOLDER_FORMATS, SUFFIXES
from ape_sr.places import Url, place
from ape_sr.process import silence
from ape_sr.weights import shipped_names, shipped_weights

if TYPE_CHECKING:
    from tqdm import tqdm

    from ape_sr.folder.inputs import Inputs
    from ape_sr.folder.jobs import Job
    from ape_sr.folder.work import Options, Work
    from ape_sr.upscaler import Upscaler

MAX_PIXELS = 180_000_000
BAR = "{percentage:3.0f}%|{bar}| {n:.3g} of {total} images, {elapsed}, {remaining} left"

DESCRIPTION = """
Upscale images, or folders of images. With weights that carry a fit (ape-sr fit), each part of an image takes as few
layers as --fidelity or --budget allow; without a fit all of them. --threshold and --min-gain-db are the paper's way
instead: patches leave where more layers are predicted to bring little.

Results keep colour profile, EXIF data, grey, 16 bits per channel (PNG, TIFF), transparency and all frames of animations
and pages, where their format can hold them. Transparency is enlarged by the network too; JPEG and BMP have it laid on
white.

Results carry a note of what they were made from: they are never taken for inputs, and if a run was interrupted, give
the same command again and it goes on where it stopped. Under torchrun the processes share the images.
"""


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "upscale",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # -s is another here than in the other subcommands
    )
    parser.set_defaults(run=run)
    formats = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=place,
        nargs="*",
        help=f"image ({formats}; avif where Pillow reads it, heif and heic with pillow-heif), folder of images, or "
        "a .txt or .parquet file with their paths; each may be an address such as s3://BUCKET/PHOTOS (docs/scale.md)",
    )
    parser.add_argument("-i", "--input", type=place, action="append", default=[], help="the same")
    parser.add_argument(
        "-o",
        "--output",
        type=place,
        help="file to write, or folder (made if needed), where the pictures are called NAME_xSCALE.png; without it "
        "they stand beside the inputs",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="take sub folders of folders too")
    parser.add_argument(
        "--format",
        choices=FOLDER_FORMATS,
        help="format of pictures that are written to a folder (png, of files with several pages tif)",
    )
    parser.add_argument("--quality", type=positive_int, help="of jpg, webp and avif, from 1 to 100 (95)")
    parser.add_argument("--first-frame", action="store_true", help="of animations and pages take the first alone")
    parser.add_argument(
        "--max-pixels", type=positive_int, default=MAX_PIXELS, help="refuse images of more pixels (%(default)s)"
    )
    parser.add_argument(
        "--windows",
        action="store_true",
        help="read one TIFF file by windows and write a TIFF file in tiles, of any size; where it can it does so by "
        f"itself above {LARGE} pixels",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="share the images, or the windows of a giant one, among the workers of a Ray cluster (HOST:PORT, or "
        "auto), without an address of this machine alone; a report.parquet is written with the results of a folder",
    )
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--fidelity",
        type=fidelity,
        default="auto",
        help="dB from 20 to 80 that each part is to have to full depth; full; auto is what the weights' fit says",
    )
    policy.add_argument("--threshold", type=fraction, help="capacity below which a patch leaves, from 0 (never) to 1")
    policy.add_argument("--min-gain-db", type=non_negative_float, help="the same as dB that a stage must bring")
    policy.add_argument("--budget", type=fraction, help="share of all work that each image may take at most")
    parser.add_argument(
        "--exit-map", action="store_true", help="also write a picture of how deep each part ran, brighter for more work"
    )
    add_network_arguments(parser)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "-s",
        "--scale",
        type=positive_float,
        help=f"factor of the sides, such as 2.5 (of the weights if given, else {DEFAULT_SCALE}); the smallest network "
        "that suffices is taken, or the given one, and its picture resized by Lanczos",
    )
    size.add_argument("--width", type=positive_int, help="the same as width of the results in pixels")
    size.add_argument("--height", type=positive_int, help="the same as their height")


def run(args: argparse.Namespace) -> None:
    """Upscale. An image that fails is reported, and the others are done."""
    with any_size():
        _run(args, prepared(args, [*args.inputs, *args.input]))


@contextmanager
def any_size() -> Generator[None, None, None]:
    """Pillow without its limit to pixels, in the place of which there is --max-pixels, and without its warnings."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF data
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@dataclass(frozen=True)
class Prepared:
    """A run that can begin. alone: whether there is one image, which was given itself. leads: whether it has a bar."""

    inputs: Inputs
    jobs: list[Job]
    networks: Networks
    alone: bool
    leads: bool


def prepared(args: argparse.Namespace, given: list[Path]) -> Prepared:
    """Everything before the first image: UserError for what is wrong with arguments or inputs. Folders are made."""
    from ape_sr.distributed import ranks_from_environment
    from ape_sr.files import remove_leftovers
    from ape_sr.folder.inputs import find_inputs
    from ape_sr.folder.jobs import is_alone, plan
    from ape_sr.many.cluster import check_ray

    _check(args, given)
    ranks = ranks_from_environment()
    if args.ray is not None:
        if ranks.world > 1:
            raise UserError("ray: expected one process, got several of torchrun, which share the images themselves")
        check_ray(args.ray or None)
    inputs = find_inputs(given, args.recursive)
    networks = Networks(args)
    label = networks.size.label(networks.default.scale)
    jobs = plan(given, inputs, args.output, label, args.format, args.first_frame)
    jobs = jobs[ranks.rank :: ranks.world]
    alone = is_alone(given)
    if alone and jobs and jobs[0].fault is not None:
        raise UserError(jobs[0].fault)
    for folder in {job.picture.parent for job in jobs}:
        _create(folder)
    remove_leftovers(target for job in jobs for target in (job.picture, job.exits))
    return Prepared(inputs, jobs, networks, alone, ranks.leads)


def _run(args: argparse.Namespace, prepared: Prepared) -> None:
    from ape_sr.folder.work import Work

    inputs, jobs, networks, alone = prepared.inputs, prepared.jobs, prepared.networks, prepared.alone
    options = options_of(args, networks, alone)
    one = jobs[0] if alone and jobs else None
    if (jobs or not alone) and goes_by_windows(args, one, networks.size, networks.default):
        run_by_windows(args, jobs[0], networks, options.settings, _say)
        return
    for fault in inputs.faults:
        _say(f"ape-sr: error: {fault}", sys.stderr)
    if args.ray is not None:
        failures = inputs.faults + run_on_ray(args, jobs, alone, _say)
    else:
        label = networks.size.label(networks.default.scale)
        announce = (lambda job: _say(f"{job.source.name}: upscaling {label} ...", sys.stderr)) if alone else None
        failures = inputs.faults + _run_jobs(Work(options, networks, announce), jobs, alone, prepared.leads)
    if inputs.passed and prepared.leads:
        _say(f"passed over: {inputs.describe_passed()}", sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs) + len(inputs.faults)} images could not be upscaled")


def options_of(args: argparse.Namespace, networks: Networks, alone: bool) -> Options:
    """What the arguments say of all images. alone: whether one image was given, and no folder."""
    from ape_sr.folder.work import Options

    return Options(
        networks.size,
        networks.settings() | {"quality": args.quality, "first_frame": args.first_frame},
        exit_map=args.exit_map,
        first_frame=args.first_frame,
        quality=args.quality,
        max_pixels=args.max_pixels,
        resume=not alone,
    )


def _run_jobs(work: Work, jobs: list[Job], alone: bool, leads: bool) -> list[str]:
    """Run them all; the lines of those that failed. An image alone that fails ends the command with its line."""
    from time import perf_counter

    from tqdm import tqdm

    from ape_sr.pipeline import run_stages

    failures: list[str] = []
    already = 0
    started = perf_counter()
    bar = tqdm(total=len(jobs), bar_format=BAR, smoothing=0, disable=None if leads else True)
    work.progress = lambda images: _move(bar, images)
    with bar, closing(run_stages(jobs, work.stages())) as results:
        for number, done in enumerate(results, start=1):
            _move(bar, number)
            if done.error is not None:
                if alone:
                    raise done.error
                failures.append(str(done.error))
                _say(f"ape-sr: error: {done.error}", sys.stderr)
                continue
            already += done.line == work.done_before(done.job)
            _say(done.line, sys.stdout)
            if alone:
                written = [done.job.picture, done.job.exits] if work.options.exit_map else [done.job.picture]
                _say(" ".join(["written:", *map(str, written)]), sys.stdout)
    if not alone:
        parts, new = work.seconds, len(jobs) - len(failures) - already
        line = f"{already} of {counted(len(jobs))} done already"
        if new or not already:
            line = f"{counted(new)} in {perf_counter() - started:.2f} s{f', {already} done already' if already else ''}"
            line += (
                f"; of the parts beside each other: reading {parts.read:.2f} s, network {parts.network:.2f} s, "
                f"writing {parts.write:.2f} s"
            )
        _say(line, sys.stderr)
    return failures


def _move(bar: tqdm[Any], images: float) -> None:
    """The bar to so many images, never back."""
    bar.update(max(0.0, min(images, bar.total) - bar.n))


class Networks:
    """The networks of a run: the one of the arguments, or of each scale that an image needs, opened when it does.

    size: what the arguments say about the size of results.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.size = Size(args.scale, args.width, args.height)
        self._args = args
        self._scales = [int(name.rpartition("-x")[2]) for name in shipped_names()]
        self._opened: dict[int | None, Upscaler] = {}
        if args.weights is not None:
            scale = None
        elif self.size.factor is not None:
            scale = self._suffices(self.size.factor, "scale")
        else:  # also for a width or height, so that what is wrong with other arguments is said now
            scale = DEFAULT_SCALE
        self.default = self._open(scale)

    def __call__(self, factor: float | None, name: str) -> Upscaler:
        """The network for results `factor` times as large. UserError, which names the image, if there is none."""
        if self._args.weights is not None or factor is None:
            return self.default
        return self._open(self._suffices(factor, name))

    def settings(self) -> dict[str, object]:
        """All that a result depends on but the image itself and its format."""
        args = self._args
        several = args.weights is None and (self.size.width or self.size.height)
        files = (
            map(shipped_weights, self._scales) if several else [weights_path(self._network_args(self.default.scale))]
        )
        return {
            "weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
            "size": self.size.label(self.default.scale),
            **network_settings(self.default),
        }

    def _suffices(self, factor: float, name: str) -> int:
        return scale_that_suffices(factor, self._scales, name)

    def _open(self, scale: int | None) -> Upscaler:
        if scale not in self._opened:
            with _one_torch_thread():
                self._opened[scale] = self._load(scale)
        return self._opened[scale]

    def _load(self, scale: int | None) -> Upscaler:
        args, factor = self._args, self.size.factor
        policy = {name: getattr(args, name) for name in ("threshold", "min_gain_db", "fidelity", "budget")}
        try:
            return open_network(self._network_args(scale), **policy)
        except UserError:  # a file of VDSR does not say its scale
            if args.weights is None or factor is None or factor != int(factor):
                raise
            try:
                return open_network(argparse.Namespace(**vars(args) | {"scale": int(factor)}), **policy)
            except UserError:
                pass
            raise

    def _network_args(self, scale: int | None) -> argparse.Namespace:
        """The arguments with the scale of the network, where weights are chosen by it."""
        return argparse.Namespace(**vars(self._args) | {"scale": None if self._args.weights else scale})


@contextmanager
def _one_torch_thread() -> Generator[None, None, None]:
    """For small operations: threads of PyTorch wait in loops, which takes longer than the work if cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(args: argparse.Namespace, given: list[Path]) -> None:
    if not given:
        raise UserError("input: expected an image or a folder of images, got none")
    for path in given:
        if not path.exists():
            like_cp = args.output is None and path in args.inputs[1:]
            hint = " (the output is given with -o)" if like_cp else ""
            raise UserError(f"input: no such file or folder: {path}{hint}")
    if args.quality is not None:
        if args.quality > 100:
            raise UserError(f"quality: expected a number from 1 to 100, got {args.quality}")
        suffix = "" if args.output is None else args.output.suffix.lower()
        lossy = {suffix for form in BY_NAME.values() if form.quality for suffix in form.suffixes}
        if suffix not in lossy and not (args.format is not None and BY_NAME[args.format].quality):
            raise UserError("quality: expected with --format jpg or webp, or an output file of such a format")


def _say(line: str, stream: TextIO) -> None:
    """Print a line above the bar, now; whether or not anybody reads it, the work goes on."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except OSError:
        silence(stream)


def _create(folder: Path) -> None:
    from ape_sr.files import check_writable

    if isinstance(folder, Url):
        return
    with suppress(OSError):  # said in the next line
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, "output", folder=True)
