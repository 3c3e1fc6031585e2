"""`ape-sr info`: versions, devices, backends and weights, for bug reports."""

from __future__ import annotations

import argparse
from pathlib import Path

from ape_kernels.environment import describe_environment
from ape_sr.checkpoint import load_network
from ape_sr.cli.arguments import Commands
from ape_sr.fits import fit_of
from ape_sr.weights import find_weights, shipped_names


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "info", description="Show versions, devices and backends, and which weights carry a fit."
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-n",
        "--weights",
        type=Path,
        nargs="+",
        default=[],
        help="also show these: names, or files that say their scale",
    )


def run(args: argparse.Namespace) -> None:
    """Print the environment and the weights."""
    print(describe_environment())
    for name in (*map(Path, shipped_names()), *args.weights):
        print(f"{'weights':17} {name}: {describe_fit(name)}")


def describe_fit(name: Path) -> str:
    """What the weights say about fidelity. Raises UserError for weights that cannot be read."""
    fit = fit_of(load_network(find_weights(name)))
    return "no fit; images run to full depth" if fit is None else f"fit, {fit.default:g} dB by default"
