"""Weights on disk: safetensors whose metadata says how to build the network, or bare state dicts of others."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.fits import attach_fit, fit_of, to_metadata
from ape_sr.models import ExitNetwork, build_model, model_name
from ape_sr.models.convert import from_state_dict

FORMAT = "ape-sr/1"
NESTED = ("params_ema", "params", "state_dict", "model")  # where other projects keep the state dict


def save_model(path: Path, model: ExitNetwork) -> None:
    """Write `model` (one of `ape_sr.models`) with its configuration, and the fit of these weights if it carries one.

    Whole or not at all.
    """
    metadata = {"format": FORMAT, "network": model_name(model), "config": json.dumps(model.config)}
    if (fit := fit_of(model)) is not None:
        metadata |= to_metadata(fit)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        # not save_file, which keeps others from reading the file whatever the umask
        temporary.write_bytes(save(tensors, metadata=metadata))


def load_model(
    path: Path, *, exit_interval: int | None = None, res_scale: float | None = None, with_fit: bool = True
) -> ExitNetwork:
    """Build the network stored in `path`, in evaluation mode, with its `exit_fit` if one is stored there or beside.

    path: a file written by `save_model`, or (``.pth``, ``.pt``) a state dict that `from_state_dict` knows,
    bare or under one of the keys in `NESTED`. exit_interval, res_scale: what a state dict does not hold, see
    there; only for such a file. with_fit: whether to read the fit. Raises UserError when a file is missing, corrupt,
    holds something else or does not fit.
    """
    if path.suffix.lower() in (".pth", ".pt"):
        state = _read_torch(path)
        _check_finite(path, state)
        try:
            model = from_state_dict(state, exit_interval=exit_interval, res_scale=res_scale)
        except ValueError as error:
            raise UserError(f"weights: {path}: {error}") from None
        if with_fit:
            attach_fit(model, path, {})
        return model
    for name, value in (("exit_interval", exit_interval), ("res_scale", res_scale)):
        if value is not None:
            raise UserError(f"{name}: expected with a .pth file only, as {path} holds its own, got {value}")
    metadata, state = _read_safetensors(path)
    _check_finite(path, state)
    try:
        model = build_model(metadata["network"], json.loads(metadata["config"]))
        model.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"weights: {path} does not fit its network: {reason}") from None
    if with_fit:
        attach_fit(model, path, metadata)
    return model.eval()


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise UserError(f"weights: no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights: {path} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"weights: {path} holds no '{FORMAT}' metadata; expected a file written by ape-sr")
    return metadata, state


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"weights: no such file: {path}") from None
    except Exception as error:  # torch raises many types for a damaged or foreign file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"weights: {path} is not a readable file of plain tensors: {reason}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in NESTED if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"weights: {path}: expected a state dict, got {type(content).__name__}")
    return content


def _check_finite(path: Path, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"weights: {path}: tensor {name} holds NaN or infinity")
