"""`ape-sr evaluate`: PSNR and SSIM against computation on a folder of pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ape_kernels.policy import threshold_from_gain
from ape_sr.cli.arguments import existing_folder, fraction, non_negative_float
from ape_sr.cli.network import add_network_arguments, open_network
from ape_sr.errors import UserError
from ape_sr.evaluate import evaluate, find_pairs, format_table
from ape_sr.files import atomic_path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        help="measure quality against computation",
        description="Measure quality against computation on a folder of <name>_HR / <name>_LR pairs, or of HR pictures "
        "alone, whose LR side is then made by bicubic downscaling. Prints means over the pictures.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("-i", "--input", type=existing_folder, required=True, help="folder of pictures")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--threshold", type=fraction, nargs="+", help="capacities below which a patch leaves, each 0 (never) to 1"
    )
    policy.add_argument("--min-gain-db", type=non_negative_float, nargs="+", help="the same as dB a stage must bring")
    parser.add_argument("--json", type=Path, help="also write every number of every picture to this file")
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the JSON."""
    if args.json is not None and args.json.is_dir():
        raise UserError(f"json: expected a file name, got the folder {args.json}")
    pairs = find_pairs(args.input)
    network = open_network(args)
    thresholds = args.threshold or [threshold_from_gain(gain) for gain in args.min_gain_db or ()] or [network.threshold]
    rows = evaluate(network, tqdm(pairs, unit="image", disable=None), thresholds)
    print(f"{len(pairs)} images, scale {network.scale}, backend {network.backend}, {args.dtype}")
    print(format_table(rows))
    if args.json is not None:
        detail = {
            "scale": network.scale,
            "backend": network.backend,
            "dtype": args.dtype,
            "weights": None if args.weights is None else str(args.weights),
            "rows": [row.as_json() for row in rows],
        }
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(detail, indent=2, allow_nan=False) + "\n")
