"""`ape-sr calibrate`: find the threshold that costs a given loss, and store it with the weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ape_kernels import APEForward
from ape_sr.checkpoint import load_model, save_model
from ape_sr.cli.arguments import Commands, existing_folder, fraction, positive_float
from ape_sr.cli.faults import Faults
from ape_sr.cli.network import add_network_arguments, open_network, weights_path
from ape_sr.errors import UserError
from ape_sr.evaluate import ImagePair, Row, at_thresholds, evaluate, find_pairs, format_table
from ape_sr.files import check_writable
from ape_sr.models.convert import Unsaid

STEPS = 8  # thresholds per round; three rounds narrow [0, 1] down to 0.002
ROUNDS = 3


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "calibrate",
        description="Find the largest threshold that costs at most --max-loss-db of PSNR, or the smallest that needs "
        "at most --flops-share. Write the weights with it as their own threshold. PSNR is on Y, as the mean over the "
        "images of a folder as `ape-sr evaluate` takes it. An image that cannot be read is reported, and the others "
        "count.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-i", "--input", type=existing_folder, required=True, help="folder of images, not those that are tested on"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="weights file to write (.safetensors)")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--max-loss-db", type=positive_float, default=0.02, help="PSNR that may be lost, in dB (%(default)s)"
    )
    goal.add_argument(
        "--flops-share", type=fraction, help="share of the FLOPs of full depth that may be needed, as a mean"
    )
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Find the threshold and write the weights with it."""
    if args.weights is None:
        raise UserError("weights: expected the file to calibrate, -n FILE")
    if args.output.suffix != ".safetensors":
        raise UserError(f"output: expected a name ending in .safetensors, got {args.output.name}")
    pairs = find_pairs(args.input)
    check_writable(args.output, "output")
    network = open_network(args).network
    if not network.program.stages[0].has_exit:
        raise UserError(f"weights: expected a network with exits, got a plain one in {args.weights}")
    faults = Faults()
    found = _narrow(network, pairs, 0.0, 1.0, args, faults)
    for _ in range(ROUNDS - 1):
        found = _narrow(network, pairs, found.low, found.high, args, faults)
    threshold = found.threshold
    print(format_table([found.full, found.row]))
    print(f"threshold {threshold:.4g} costs {found.full.number('psnr_y') - found.row.number('psnr_y'):.4f} dB")
    model = load_model(weights_path(args), Unsaid(args.exit_every, args.res_scale, args.scale))
    model.config["exit_threshold"] = model.exit_threshold = 1 - threshold
    save_model(args.output, model)
    print(f"written: {args.output}")
    faults.check(len(pairs), "the threshold is the others'")


class _Found(NamedTuple):
    """The result of a round.

    threshold: the best one that was tried. low, high: the next round tries thresholds between them. full, row: the
    results at a threshold of 0 and at the best one.
    """

    threshold: float
    low: float
    high: float
    full: Row
    row: Row


def _narrow(
    network: APEForward,
    pairs: Sequence[ImagePair],
    low: float,
    high: float,
    args: argparse.Namespace,
    faults: Faults,
) -> _Found:
    """Try `STEPS` + 1 thresholds from `low` to `high`."""
    thresholds = [low + (high - low) * i / STEPS for i in range(STEPS + 1)]
    methods = at_thresholds([0.0, *thresholds])
    full, *rows = evaluate(network, tqdm(pairs, unit="image", disable=None), methods, skip=faults)
    faults.check_any_left(len(pairs))
    if args.flops_share is None:
        losses = [full.number("psnr_y") - row.number("psnr_y") for row in rows]
        best = max(i for i, loss in enumerate(losses) if loss <= args.max_loss_db or i == 0)
        low, high = thresholds[best], thresholds[min(best + 1, STEPS)]
    else:
        fitting = [i for i, row in enumerate(rows) if row.number("flops_share") <= args.flops_share]
        if not fitting:
            least = rows[-1].number("flops_share")
            raise UserError(f"flops-share: expected at least {least:.3f}, what the first exit takes")
        best = fitting[0]
        low, high = thresholds[max(best - 1, 0)], thresholds[best]
    return _Found(thresholds[best], low, high, full, rows[best])
