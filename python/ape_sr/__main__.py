"""The command `ape-sr`, also ``python -m ape_sr``."""

from __future__ import annotations

import sys

from ape_sr.process import finish, prepare


def main() -> int:
    """Run `ape-sr` on the arguments of the process; returns the exit status.

    All of the extra is looked for first, so that a command does not stop in the middle at one that it imports late.
    """
    prepare()
    from ape_sr.extras import how_to_install, missing

    if lacking := missing():
        print(f"ape-sr: error: needs {', '.join(lacking)}; run: {how_to_install(*lacking)}", file=sys.stderr)
        return 2
    from ape_sr.cli import main as run

    try:
        return run()
    except BrokenPipeError:  # the reader of the output has gone
        return 141
    finally:
        finish()


if __name__ == "__main__":
    sys.exit(main())
