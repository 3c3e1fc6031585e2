"""`ape-sr evaluate`: PSNR and SSIM against computation on a folder of pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ape_kernels import APEForward, Report
from ape_kernels.policy import Fidelity, threshold_from_gain
from ape_sr.cli.arguments import Commands, counted, existing_folder, fidelity, fraction, non_negative_float
from ape_sr.cli.faults import Faults
from ape_sr.cli.network import add_network_arguments, open_network
from ape_sr.data.images import write_image
from ape_sr.errors import UserError
from ape_sr.evaluate import (
    BICUBIC,
    FULL,
    PLAIN,
    ImagePair,
    Method,
    Watch,
    at_thresholds,
    evaluate,
    find_pairs,
    format_table,
    write_csv,
)
from ape_sr.files import atomic_path, check_writable
from ape_sr.upscaler import Upscaler


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        description="Measure quality against computation on a folder of pairs <name>_HR and <name>_LR, or of HR images "
        "alone. Their LR versions are then made by bicubic downscaling. Prints means over the images: for bicubic, for "
        "the network on whole images ('plain'), and for every fidelity, budget and threshold; without any of these "
        "for what the weights' fit says, or full depth. FLOPs are shares of full depth, counted on what runs; in the "
        "column 'uncollapsed' they are counted with the tail as the network has it. A picture that cannot be read is "
        "reported, and the figures are of the others.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("-i", "--input", type=existing_folder, required=True, help="folder of images")
    parser.add_argument(
        "--fidelity",
        type=fidelity,
        nargs="+",
        help="dB, from 20 to 80, that each part is to have to full depth; full; auto is what the weights' fit says",
    )
    parser.add_argument("--budget", type=fraction, nargs="+", help="shares of all work that each image may take")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--threshold",
        type=fraction,
        nargs="+",
        help="the paper's way: capacities below which a patch leaves, from 0 (never) to 1",
    )
    policy.add_argument(
        "--min-gain-db", type=non_negative_float, nargs="+", help="the same as dB that a stage must bring"
    )
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--plot", type=Path, help="also draw PSNR against FLOPs and time, and the exits, to this PNG")
    parser.add_argument("--exit-maps", type=Path, help="also draw how deep each part ran, into this folder")
    parser.add_argument("--json", type=Path, help="also write every number of every image to this file")
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write the files that the arguments name."""
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise UserError(f"plot: expected a name ending in .png, got {args.plot.name}")
    pairs = find_pairs(args.input)
    for name in ("json", "csv", "plot", "exit_maps"):
        if (path := getattr(args, name)) is not None:
            check_writable(path, name.replace("_", "-"), folder=name == "exit_maps")
    upscaler = open_network(args)
    network = upscaler.network
    methods = [BICUBIC, PLAIN, *(_methods(args, network) or [_planned("auto", network)])]
    watch = None if args.exit_maps is None else _exit_maps(upscaler, args.exit_maps)
    faults = Faults()
    rows = evaluate(network, tqdm(pairs, unit="image", disable=None), methods, watch, faults)
    faults.check_any_left(len(pairs))
    print(f"{counted(len(rows[0].results))}, scale {upscaler.scale}, backend {upscaler.backend}, {args.dtype}")
    print(format_table(rows))
    if args.csv is not None:
        write_csv(args.csv, rows)
    if args.plot is not None:
        from ape_sr.plots import draw_rows  # only here: the import takes as long as upscaling a small image

        draw_rows(args.plot, rows)
    if args.json is not None:
        detail = {
            "scale": upscaler.scale,
            "backend": upscaler.backend,
            "dtype": args.dtype,
            "weights": None if args.weights is None else str(args.weights),
            "rows": [row.as_json() for row in rows],
        }
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(detail, indent=2, allow_nan=False) + "\n")
    faults.check(len(pairs), "the figures are of the others")


def _methods(args: argparse.Namespace, network: APEForward) -> list[Method]:
    """Those that the arguments name."""
    thresholds = args.threshold or [threshold_from_gain(gain) for gain in args.min_gain_db or ()]
    budgets = [Method("budget", share) for share in args.budget or ()]
    return [*(_planned(value, network) for value in args.fidelity or ()), *budgets, *at_thresholds(thresholds)]


def _planned(value: Fidelity, network: APEForward) -> Method:
    value = network.fidelity if value == "auto" else value
    return FULL if value is None else Method("fidelity", value)


def _exit_maps(upscaler: Upscaler, folder: Path) -> Watch:
    """A function that writes ``<picture>_<method>.png``, the exit map of a picture."""

    def write(pair: ImagePair, method: Method, picture: np.ndarray, report: Report) -> None:
        name = f"{pair.name}_{method.name.replace(' ', '_')}.png"
        write_image(folder / name, upscaler.exit_map(picture, report))

    return write
