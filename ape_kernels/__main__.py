"""``python -m ape_kernels`` shows what this installation can run; ``verify`` after it tests the backends."""

import argparse
import os
import sys

from ape_kernels.environment import describe_environment
from ape_kernels.verify.command import main


def run() -> int:
    """Returns the exit status; Ctrl-C and a reader of the output that goes are no traceback."""
    try:
        if sys.argv[1:2] == ["verify"]:
            return main(sys.argv[2:])
        parser = argparse.ArgumentParser(prog="python -m ape_kernels", description=__doc__)
        parser.add_argument("command", nargs="?", choices=["verify"], help="verify --help shows its arguments")
        parser.parse_args()
        print(describe_environment(), flush=True)
        return 0
    except KeyboardInterrupt:
        print("ape_kernels: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as of ``| head -1``; what is still buffered must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(run())
