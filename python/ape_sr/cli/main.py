"""Entry point of `ape-sr`: one module per subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ape_kernels import __version__
from ape_sr.cli import calibrate, evaluate, fit, info, train, upscale
from ape_sr.errors import UserError

COMMANDS = (upscale, evaluate, fit, calibrate, train, info)


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments as any other bad input is reported, in one line without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ape-sr`; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C.

    argv: the arguments, by default those of the process. Without any the help is printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(prog="ape-sr", description="Super-resolution with adaptive patch exiting.")
    parser.add_argument("--version", action="version", version=f"ape-sr {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    if not argv:
        parser.print_help()
        return 0
    try:
        args = parser.parse_args(argv)
        args.run(args)
    except UserError as error:
        print(f"ape-sr: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ape-sr: interrupted", file=sys.stderr)
        return 130
    return 0
