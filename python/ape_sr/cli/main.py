"""Entry point of `ape-sr`: one module per subcommand, imported when it is called."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from ape_sr.errors import UserError
from ape_sr.process import begin_work

COMMANDS = {  # subcommand and module -> its line in the help
    "upscale": "upscale images, or folders of images",
    "video": "upscale a video",
    "demo": "open a page to try pictures on",
    "evaluate": "measure quality against computation",
    "fit": "learn where the network is not needed",
    "calibrate": "choose the threshold by what it may cost",
    "train": "train a network, plain or with exits",
    "info": "show versions, devices, backends and weights",
}


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments as any other bad input is reported, in one line without the usage."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            message += " (--help lists those there are)"
        raise UserError(message)


class _Version(argparse.Action):
    """Prints the version; read from the text of the file, as importing it brings PyTorch."""

    def __call__(self, *_: object) -> NoReturn:
        spec = find_spec("ape_kernels")
        text = Path(spec.origin).read_text() if spec is not None and spec.origin is not None else ""
        match = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
        print("ape-sr", match[1] if match else "of unknown version")
        sys.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ape-sr`; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C.

    argv: the arguments, by default those of the process. Without any the help is printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv:
            _parser(argv).print_help()
            return 0
        args = parse(argv)
        import_module("ape_sr.upscaler")  # with PyTorch: amid it Ctrl-C would be a traceback after begin_work
        begin_work()
        args.run(args)
    except UserError as error:
        print(f"ape-sr: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of a path that nobody looked at in time, or of the disk to which the output goes
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"ape-sr: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ape-sr: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command. UserError if one is wrong."""
    return _parser(argv).parse_args(argv)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Knows the settings of the command that `argv` names, and the names of the others."""
    parser = _Parser(prog="ape-sr", description="Super-resolution with adaptive patch exiting.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        if name == next(iter(argv), None):
            import_module(f"ape_sr.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=line)
    return parser
