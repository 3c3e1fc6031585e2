"""`ape-sr fit`: learn how far a network's exits are from its full depth, and store it with the weights."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from tqdm import tqdm

from ape_kernels import fit_exits, to_program
from ape_sr.checkpoint import load_model, save_model
from ape_sr.cli.arguments import Commands, counted, positive_float, positive_int
from ape_sr.data.degrade import bicubic_downscale, modcrop
from ape_sr.data.images import read_image, to_tensor
from ape_sr.distributed import default_device
from ape_sr.errors import UserError
from ape_sr.files import check_writable
from ape_sr.fits import SUFFIX, save_fit
from ape_sr.folder.inputs import find_inputs
from ape_sr.models import ExitNetwork
from ape_sr.models.convert import Unsaid
from ape_sr.weights import find_weights

REDUCED = (320, 512)  # pixels of a picture that was reduced by the scale, at most; fewer for slow networks
CROP = (96, 96)  # of a picture as it is
LEAST = 24  # pixels that a side must have
QUALITY = (50, 95)  # of JPEG copies
FLOPS = 3.3e12  # of full depth on all pictures; `fit_exits` does some eight times that
PIXELS = (800_000, 6_000_000)  # of all pictures, at least and at most
FILES = 12  # that these pixels are to come from, at least: many small pictures tell more than a few large ones
JPEGS = 3  # of so many reduced pictures one serves once more as JPEG


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "fit",
        description="Learn, from pictures and without any ground truth, how far each exit of the network, and plain "
        "interpolation, are from its full depth. Images can then be upscaled at a fidelity that is asked for. Takes "
        "about two minutes. Every picture serves reduced by the scale, as a crop of itself, and some as JPEG. One that "
        "cannot be read is reported, and the others serve. Nothing but the output is written.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=Path,
        nargs="*",
        help="some dozens of pictures like those to be upscaled: images, or folders of images",
    )
    parser.add_argument("-i", "--input", type=Path, nargs="+", action="extend", default=[], help="the same")
    parser.add_argument("-r", "--recursive", action="store_true", help="take sub folders of folders too")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"file to write: weights with the fit inside (.safetensors), or the fit alone ({SUFFIX}); "
        f"WEIGHTS{SUFFIX} beside WEIGHTS is found by itself",
    )
    parser.add_argument(
        "-n", "--weights", type=Path, required=True, help="weights: a file, or a name `ape-sr info` lists"
    )
    parser.add_argument(
        "--exit-every", type=positive_int, help="residual blocks between exits, for a .pth file with exits"
    )
    parser.add_argument("--res-scale", type=positive_float, help="factor of the residual blocks, for a .pth file")


def run(args: argparse.Namespace) -> None:
    """Fit and write. A picture that fails is reported, and the others serve."""
    if args.output.suffix != ".safetensors":
        raise UserError(f"output: expected a name ending in .safetensors, got {args.output.name}")
    given = [*args.inputs, *args.input]
    if not given:
        raise UserError("input: expected images or folders of images, got none")
    found = find_inputs(given, args.recursive)
    path = find_weights(args.weights)
    model = load_model(path, Unsaid(args.exit_every, args.res_scale), with_fit=False)
    model.to(default_device("auto"))
    check_writable(args.output, "output")
    alone = args.output.name.endswith(SUFFIX)
    _say(f"{path.name}: fitting to {counted(len(found.files))}, or as many as two minutes allow ...")
    _say(f"then writes {args.output}: {'the fit alone' if alone else 'the weights with the fit inside'}")
    if found.passed:
        _say(f"passed over: {found.describe_passed()}")
    for fault in found.faults:
        _say(f"ape-sr: error: {fault}")
    pictures, faults = choose_pictures([file for file, _ in found.files], model)
    images = [to_tensor(picture, model.rgb_range) for picture in pictures]
    started = perf_counter()
    try:
        fit = fit_exits(model, tqdm(images, desc="fitting", unit="part", disable=None))
    except ValueError as error:
        raise UserError(str(error)) from None
    if alone:
        save_fit(args.output, fit)
    else:
        save_model(args.output, model)
    seconds = perf_counter() - started
    print(f"a fit to {len(images)} parts of pictures in {seconds:.0f} s, fidelity {fit.default:g} dB by default")
    print(f"written: {args.output}")
    if faults or found.faults:
        raise UserError(
            f"{len(faults) + len(found.faults)} of {len(found.files) + len(found.faults)} images could not be read; "
            "the others served"
        )


def choose_pictures(paths: list[Path], model: ExitNetwork) -> tuple[list[np.ndarray], list[str]]:
    """uint8 ``[H, W, 3]``: the inputs that files give, as many as fit into two minutes; the same for the same files.

    Those of one file follow each other. Also returns a line for every file that could not be read, which is printed.
    """
    rng = np.random.default_rng(0)
    program = to_program(model)
    flops = program.flops_to_stage(len(program.stages) - 1) / program.fold**2
    left = float(np.clip(FLOPS / flops, *PIXELS))
    reduced = (left / FILES - math.prod(CROP)) / (1 + 1 / JPEGS)  # pixels
    shorter = min(1.0, math.sqrt(reduced / math.prod(REDUCED)))
    size = (round(REDUCED[0] * shorter), round(REDUCED[1] * shorter))
    chosen: list[np.ndarray] = []
    faults: list[str] = []
    for number in tqdm(rng.permutation(len(paths)), desc="reading", unit="image", leave=False, disable=None):
        try:
            whole = read_image(paths[number])
        except UserError as error:
            faults.append(str(error))
            _say(f"ape-sr: error: {error}")
            continue
        if min(whole.shape[:2]) < LEAST:
            _say(f"passed over: {paths[number]}, which is smaller than {LEAST} pixels")
        for picture in _inputs(whole, model.scale, size, rng):
            left -= picture.shape[0] * picture.shape[1]
            if left < 0:
                return chosen, faults
            chosen.append(picture)
    return chosen, faults


def _say(line: str) -> None:
    """Print a line above the bar."""
    tqdm.write(line, file=sys.stderr)


def _inputs(picture: np.ndarray, scale: int, size: tuple[int, int], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The picture reduced and cut to `size`, a crop of it as it is, and of some the reduced one as JPEG."""
    if min(picture.shape[:2]) >= LEAST * scale:
        reduced = _crop(bicubic_downscale(modcrop(picture, scale), scale), size, rng)
        yield reduced
        if rng.integers(JPEGS) == 0:
            yield _as_jpeg(reduced, int(rng.integers(*QUALITY)))
    if min(picture.shape[:2]) >= LEAST:
        yield _crop(picture, CROP, rng)


def _crop(picture: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = (min(most, side) for most, side in zip(size, picture.shape, strict=False))
    top, left = rng.integers(picture.shape[0] - height + 1), rng.integers(picture.shape[1] - width + 1)
    return picture[top : top + height, left : left + width]


def _as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))
