"""``python -m ape_kernels`` shows what this installation can run; ``verify`` after it tests the backends."""

import sys

from ape_kernels.environment import describe_environment
from ape_kernels.verify.command import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        sys.exit(main(sys.argv[2:]))
    print(describe_environment())
