"""Weights that come with the package, one file per network."""

from __future__ import annotations

from pathlib import Path

from ape_sr.errors import UserError

FOLDER = Path(__file__).parent
NETWORK = "edsr-12x32"  # of which there are weights for several scales


def shipped_names() -> list[str]:
    """Names of the weights that come with the package, such as "edsr-12x32-x4"."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("*.safetensors"))


def shipped_weights(scale: int) -> Path:
    """File of the weights that come with the package for `scale`; UserError lists the scales there are."""
    name = f"{NETWORK}-x{scale}"
    if name not in shipped_names():
        scales = ", ".join(name.rpartition("-x")[2] for name in shipped_names()) or "none"
        raise UserError(f"scale: no weights come with the package for {scale} (available: {scales}); name some with -n")
    return _file(name)


def find_weights(weights: str | Path) -> Path:
    """File of `weights`: a name that `shipped_names` lists, or a path. UserError if there is no such file."""
    if str(weights) in shipped_names():
        return _file(str(weights))
    path = Path(weights)
    if not path.is_file():
        names = ", ".join(shipped_names())
        raise UserError(f"weights: no such file: {path} (weights that come with the package: {names})")
    return path


def _file(name: str) -> Path:
    return FOLDER / f"{name.replace('-', '_')}.safetensors"
