"""Fits on disk: in the metadata of our own weights, or in a file of their own beside those of others."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ape_kernels.plan.fit import ExitFit, fingerprint_of
from ape_sr.errors import UserError
from ape_sr.files import atomic_path

KEY = "exit_fit"  # in the metadata
SUFFIX = ".fit.safetensors"  # of the file beside weights, added to their whole name


def fit_of(model: nn.Module) -> ExitFit | None:
    """The fit that `model` carries, if it belongs to the weights as they are now."""
    fit: Any = getattr(model, "exit_fit", None)
    return fit if fit is not None and fit.fingerprint == fingerprint_of(model) else None


def to_metadata(fit: ExitFit) -> dict[str, str]:
    """What the metadata of a safetensors file holds of a fit."""
    return {KEY: base64.b64encode(save(fit.state())).decode()}


def digest_of(fit: ExitFit) -> str:
    """Hexadecimal digest of a fit: others plan otherwise."""
    return hashlib.sha256(save(fit.state())).hexdigest()


def save_fit(path: Path, fit: ExitFit) -> None:
    """Write a file that holds nothing but a fit; whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(fit.state()))


def attach_fit(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Set ``model.exit_fit`` to the fit in `metadata`, or in the file beside the weights `path`; None without either.

    Raises UserError for a fit that cannot be read or belongs to other weights.
    """
    beside = path.with_name(path.name + SUFFIX)
    fit = None
    if KEY in metadata:
        fit = read_fit(base64.b64decode(metadata[KEY]), path)
    elif beside.is_file():
        fit = read_fit(beside.read_bytes(), beside)
    if fit is not None and fit.fingerprint != fingerprint_of(model):
        name = path if KEY in metadata else beside
        raise UserError(f"fit: {name}: expected one of the weights in {path}, got one of others; run: ape-sr fit")
    model.exit_fit = fit  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue] - a plain attribute


def read_fit(content: bytes, path: Path) -> ExitFit:
    """The fit that the content of a safetensors file holds; UserError, naming `path`, if it holds none."""
    try:
        return ExitFit.from_state(load(content))
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"fit: {path}: cannot be read: {error}") from None
