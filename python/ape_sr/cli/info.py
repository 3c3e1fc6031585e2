"""`ape-sr info`: versions, devices and backends, for bug reports."""

from __future__ import annotations

import argparse

from ape_kernels.environment import describe_environment
from ape_sr.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("info", description="Show versions, devices and backends.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the environment."""
    print(describe_environment())
