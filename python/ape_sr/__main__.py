"""The command `ape-sr`, also ``python -m ape_sr``."""

from __future__ import annotations

import sys

from ape_sr.process import finish, prepare

NEEDED = {  # module -> its distribution in the extra `sr` of pyproject.toml
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "imagecodecs": "imagecodecs",
    "tifffile": "tifffile",
    "zlib_ng": "zlib-ng",
}


def main() -> int:
    """Run `ape-sr` on the arguments of the process; returns the exit status.

    All of the extra is looked for first, so that a command does not stop in the middle at one that it imports late.
    """
    prepare()
    from importlib.util import find_spec

    missing = [distribution for module, distribution in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(f'ape-sr: error: needs {", ".join(missing)}; run: pip install "ape-kernels[sr]"', file=sys.stderr)
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
