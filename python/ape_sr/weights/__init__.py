"""Where weights are found: those that come with the package, one file per network, and those of APE_MODELS."""

from __future__ import annotations

import os
from pathlib import Path

from ape_sr.errors import UserError

FOLDER = Path(__file__).parent
NETWORK = "edsr-12x32"  # of which there are weights for several scales
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")  # of files that `ape_sr.checkpoint` reads
SHOWN = 12  # names of a folder that a message lists


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
    """File of `weights`: a name that `shipped_names` lists, else a path, else a name in the folder APE_MODELS.

    A name there is a file's, with or without its suffix. UserError if there is no such file, or more than one.
    """
    if str(weights) in shipped_names():
        return _file(str(weights))
    path = Path(weights)
    if path.is_file():
        return path
    known = f"weights that come with the package: {', '.join(shipped_names())}"
    if folder := os.environ.get("APE_MODELS"):
        there = _in_folder(folder)
        found = [file for file in there if str(path) in (file.name, file.stem)]
        if len(found) > 1:
            raise UserError(f"weights: expected the name of one file, got {' and '.join(map(str, found))}")
        if found:
            return found[0]
        names = ", ".join(file.stem for file in there[:SHOWN]) or "none"
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        known += f"; in APE_MODELS, {folder}: {names}{more}"
    raise UserError(f"weights: no such file: {path} ({known})")


def offered_names() -> list[str]:
    """Names that `find_weights` knows: those that come with the package, then the files of APE_MODELS."""
    folder = os.environ.get("APE_MODELS")
    return [*shipped_names(), *(file.name for file in _in_folder(folder))] if folder else shipped_names()


def _in_folder(folder: str) -> list[Path]:
    return [file for file in sorted(Path(folder).glob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]


def _file(name: str) -> Path:
    return FOLDER / f"{name.replace('-', '_')}.safetensors"
