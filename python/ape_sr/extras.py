"""What this package can use and is not installed, and the line that installs it."""

from __future__ import annotations

import sys

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


def missing() -> list[str]:
    """Distributions of the extra `sr` that are not installed."""
    from importlib.util import find_spec

    return [distribution for module, distribution in NEEDED.items() if find_spec(module) is None]


def how_to_install(*distributions: str) -> str:
    """The command that installs these, in versions that serve, into the Python that runs.

    It names them and no extra of this package, which is on no index: the command works in any folder, however the
    package was installed.
    """
    import re
    import shlex
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, requires

    wanted: dict[str, str] = {}
    with suppress(PackageNotFoundError):  # run from its source folder
        for line in requires("ape-kernels") or ():
            requirement = line.partition(";")[0].strip()
            wanted.setdefault(re.split(r"[^\w-]", requirement)[0], requirement)
    quoted = (shlex.quote(wanted.get(name, name)) for name in distributions)
    return " ".join((shlex.quote(sys.executable or "python3"), "-m pip install", *quoted))
