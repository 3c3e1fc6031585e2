"""``python -m ape_kernels``: show what this installation can run; with ``verify``, find out what is right here."""

import sys

from ape_kernels.environment import describe_environment
from ape_kernels.verify.command import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        sys.exit(main(sys.argv[2:]))
    print(describe_environment())
