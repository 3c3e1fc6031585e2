"""`ape-sr video`: upscale a video."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ape_sr.cli.arguments import Commands, fidelity, non_negative_float
from ape_sr.cli.network import add_network_arguments, network_settings, open_network, weights_path
from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.files import check_writable
from ape_sr.video.codecs import CODECS, FORMATS, LEVELS, WORST_CRF
from ape_sr.video.segments import LENGTH, Segments

if TYPE_CHECKING:  # PyTorch and FFmpeg come with it
    from ape_sr.video.enlarge import Enlarger

ENOUGH = 0.9  # of the frames that a file says it has; some say it by their duration alone
BAR = "{percentage:3.0f}%|{bar}| {n} of {total} frames, {elapsed}, {remaining} left"

DESCRIPTION = f"""
Upscale a video frame by frame. Sound, subtitles, chapters and the times of frames stay as they are. What did not change
since the frame before is not computed again, and the picture is the same as if it were: it is reused where everything
is equal that it depends on.

Every {LENGTH} frames are kept beside the output, in .NAME.segments, until all are done. If a run was interrupted, give
the same command again and it goes on where it stopped.
"""


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("video", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    parser.add_argument("-i", "--input", type=Path, required=True, help="video, of any format that FFmpeg reads")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"file to write ({', '.join(FORMATS)})")
    add_network_arguments(parser)
    parser.add_argument("--device", help="device that computes, such as cpu or cuda:1 (a GPU where there is one)")
    parser.add_argument(
        "--fidelity",
        type=fidelity,
        default="auto",
        help="dB from 20 to 80 that each part is to have to full depth; full; auto is what the weights' fit says",
    )
    parser.add_argument(
        "--reuse-tolerance",
        type=non_negative_float,
        default=0.0,
        metavar="LEVELS",
        help="levels of 8 bits by which a pixel may differ and count as unchanged, for noise (0: exact)",
    )
    parser.add_argument(
        "--codec", choices=tuple(CODECS), default="h264", help="of the output (%(default)s); ffv1 loses nothing"
    )
    good = ", ".join(f"{codec.crf} for {name}" for name, codec in CODECS.items() if codec.crf is not None)
    parser.add_argument("--crf", type=int, help=f"quality of h264 and h265, from 0 (best) to {WORST_CRF} ({good})")


def run(args: argparse.Namespace) -> None:
    """Upscale."""
    _check(args)
    try:
        import av
    except ModuleNotFoundError:
        raise UserError(f"video: needs av; run: {how_to_install('av')}") from None
    from tqdm import tqdm

    from ape_sr.video.enlarge import Enlarger
    from ape_sr.video.reading import read_shape
    from ape_sr.video.work import upscale_video
    from ape_sr.video.writing import Encoding, check_output

    shape = read_shape(args.input)
    check_writable(args.output, "output")
    upscaler = open_network(args, fidelity=args.fidelity, device=args.device)
    enlarger = Enlarger(upscaler, args.reuse_tolerance)
    encoding = Encoding(args.codec, args.crf, shape, enlarger.scale)
    check_output(args.input, args.output, encoding)
    source = args.input.stat()
    note = json.dumps(
        {
            "source": args.input.name,
            "bytes": source.st_size,
            "modified": source.st_mtime_ns,
            "weights": hashlib.sha256(weights_path(args).read_bytes()).hexdigest(),
            "reuse tolerance": args.reuse_tolerance,
            "codec": [args.codec, args.crf, av.__version__],
            "segments": LENGTH,
            **network_settings(upscaler),
        }
    )
    label = f"{shape.width}x{shape.height} -> {shape.width * enlarger.scale}x{shape.height * enlarger.scale}"
    with Segments(args.output, note) as segments:
        begun = segments.frames
        going_on = f", going on after {begun} frames" if begun else ""
        print(f"{args.input.name}: upscaling x{enlarger.scale}{going_on} ...", file=sys.stderr, flush=True)
        started = perf_counter()
        most = shape.frames or 0
        with tqdm(total=shape.frames, initial=begun, bar_format=BAR, disable=None) as bar:
            frames = upscale_video(
                args.input,
                args.output,
                encoding,
                enlarger,
                segments,
                lambda done: bar.update(min(done, max(most, bar.n)) - bar.n),
            )
        seconds = perf_counter() - started
    if begun + frames < ENOUGH * most:
        line = f"{args.input.name}: ends after {begun + frames} frames, where about {most} were expected"
        print(line, file=sys.stderr)
    print(f"{args.input.name}: {label}, {describe(frames, seconds, enlarger)}, backend {upscaler.backend}")
    print(f"written: {args.output}")


def describe(frames: int, seconds: float, enlarger: Enlarger) -> str:
    """What a run did, in one line."""
    words = [f"{frames} frame{'' if frames == 1 else 's'} in {seconds:.2f} s ({frames / seconds:.2f} per second)"]
    if enlarger.pixels:
        words.append(f"{1 - enlarger.renewed / enlarger.pixels:.1%} of the picture reused")
        words.append(f"{enlarger.interpolated / enlarger.pixels:.1%} interpolated")
    return ", ".join(words)


def _check(args: argparse.Namespace) -> None:
    if args.crf is not None and CODECS[args.codec].crf is None:
        raise UserError(f"crf: expected with --codec h264 or h265, got it with {args.codec}, which loses nothing")
    if args.crf is not None and not 0 <= args.crf <= WORST_CRF:
        raise UserError(f"crf: expected a whole number from 0 to {WORST_CRF}, got {args.crf}")
    if args.reuse_tolerance > LEVELS:
        raise UserError(f"reuse-tolerance: expected at most {LEVELS} levels, got {args.reuse_tolerance:g}")
    if args.output.is_dir():
        raise UserError(f"output: expected a file, got the folder {args.output}")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise UserError(f"output: {args.output} is the input and would be overwritten; choose another name")
