"""Weights on disk: safetensors whose metadata says how to build the network, or files of other projects."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.files import atomic_path
from ape_sr.fits import attach_fit, fit_of, to_metadata
from ape_sr.models import ExitNetwork, build_model, model_name
from ape_sr.models.convert import Unsaid, family_of, foreign_name, from_state_dict
from ape_sr.weights import SUFFIXES

FORMAT = "ape-sr/1"
NESTED = (  # where other projects keep the state dict; the best one comes first
    "params_ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model_state",
    "g_ema",
    "ema",
    "generator",
    "net_g",
    "netG",
    "model",
    "net",
    "network",
    "module",
    "weights",
)
# what wrapping modules put before a key
PREFIXES = ("module.", "_orig_mod.", *(f"{name}." for name in NESTED))
# what trainers save beside tensors: options, and numbers of NumPy; none of them runs code
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]
COUNTERS = ("total_ops", "total_params")  # buffers that a profiler leaves behind


def save_model(path: Path, model: ExitNetwork) -> None:
    """Write `model` (one of `ape_sr.models`) with its configuration, and with its fit if it has one.

    The file is written whole or not at all.
    """
    metadata = {"format": FORMAT, "network": model_name(model), "config": json.dumps(model.config)}
    if (fit := fit_of(model)) is not None:
        metadata |= to_metadata(fit)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        # save_file would keep others from reading the file, whatever the umask
        temporary.write_bytes(save(tensors, metadata=metadata))


def load_model(path: Path | str, unsaid: Unsaid | None = None, *, with_fit: bool = True) -> ExitNetwork:
    """Build the network stored in `path`, in evaluation mode, with its `exit_fit` if one is stored there or beside it.

    path: a file written by `save_model`, or a state dict that `from_state_dict` knows. This is ``.safetensors``, or a
    pickle of PyTorch (``.pth``, ``.pt``, ``.ckpt`` or ``.bin``), of which only tensors are read. The state dict may
    stand under a key of `NESTED`, and its keys may begin with one of `PREFIXES`. unsaid: what a state dict does not
    hold; only for such a file.
    with_fit: whether to read the fit.

    Raises UserError when the file is missing, corrupt, holds something else or does not fit.
    """
    path = Path(path)
    metadata, content = _read(path)
    model = _built(path, metadata, content, unsaid or Unsaid())
    if with_fit:
        attach_fit(model, path, metadata or {})
    return model


def load_network(path: Path | str, unsaid: Unsaid | None = None) -> nn.Module:
    """As `load_model`. A network of another family is built by spandrel, where that is installed.

    Networks of spandrel read and write pixels from 0 to 1.
    """
    path = Path(path)
    metadata, content = _read(path)
    model = _network(path, metadata, content, unsaid or Unsaid())
    attach_fit(model, path, metadata or {})
    return model


def _network(path: Path, metadata: dict[str, str] | None, content: object, unsaid: Unsaid) -> nn.Module:
    try:
        return _built(path, metadata, content, unsaid)
    except UserError as error:
        if metadata is not None:
            raise
        try:
            model = _by_spandrel(content)
        except ImportError:
            known = any(map(family_of, state_dicts(content)))
            hint = "" if known else f"; with spandrel more networks load: {how_to_install('spandrel')}"
            raise UserError(f"{error}{hint}") from None
        if model is None:
            raise
        for name in ("exit_interval", "res_scale"):
            if (value := getattr(unsaid, name)) is not None:
                raise UserError(
                    f"{name}: expected none for {path}, which spandrel builds by itself, got {value}"
                ) from None
        return model


def state_dicts(content: object, depth: int = 3) -> Iterator[dict[str, Tensor]]:
    """What may be the state dict of a network in `content`: the outermost first, each also without `PREFIXES`."""
    if not isinstance(content, Mapping):
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not name.endswith(COUNTERS)
    }
    if tensors:
        yield from _without_prefixes(tensors)
    for name in NESTED if depth else ():
        yield from state_dicts(content.get(name), depth - 1)


def _without_prefixes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    yield tensors
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if inner:
            yield from _without_prefixes(inner)


def _built(path: Path, metadata: dict[str, str] | None, content: object, unsaid: Unsaid) -> ExitNetwork:
    if metadata is not None:
        return _own(path, metadata, content, unsaid)
    found = list(state_dicts(content))
    if not found:
        raise UserError(f"weights: {path}: expected a state dict, got {_what(content)}")
    state = next(filter(family_of, found), None) or next(filter(foreign_name, found), found[0])
    _check_finite(path, state)
    try:
        return from_state_dict(state, unsaid)
    except ValueError as error:
        raise UserError(f"weights: {path}: {error}") from None


def _own(path: Path, metadata: dict[str, str], state: object, unsaid: Unsaid) -> ExitNetwork:
    for name in ("exit_interval", "res_scale"):
        if (value := getattr(unsaid, name)) is not None:
            raise UserError(f"{name}: expected with a file of another project, as {path} holds its own, got {value}")
    assert isinstance(state, dict)
    _check_finite(path, state)
    try:
        model = build_model(metadata["network"], json.loads(metadata["config"]))
        model.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"weights: {path} does not fit its network: {reason}") from None
    return model.eval()


def _by_spandrel(content: object) -> nn.Module | None:
    """The network in `content` as spandrel builds it, or None. ImportError where spandrel cannot be imported."""
    try:
        from spandrel import ImageModelDescriptor, ModelLoader  # pyright: ignore[reportMissingTypeStubs]
    except RuntimeError as error:  # raised by a torchvision that was built for another PyTorch
        raise ImportError(str(error)) from error
    for state in state_dicts(content):
        try:
            descriptor = ModelLoader(device="cpu").load_from_state_dict(state)
        except Exception:  # raised by any architecture that it tried
            continue
        if isinstance(descriptor, ImageModelDescriptor):
            return descriptor.model.eval()
    return None


def _read(path: Path) -> tuple[dict[str, str] | None, object]:
    """The metadata and the content of a file. The metadata is None if ape-sr did not write the file."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"weights: expected a file name ending in {', '.join(SUFFIXES)}, got {path}")
    return _read_safetensors(path) if suffix == ".safetensors" else (None, _read_pickled(path))


def _read_safetensors(path: Path) -> tuple[dict[str, str] | None, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise UserError(f"weights: no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights: {path} is not a readable safetensors file: {error}") from None
    return metadata if metadata.get("format") == FORMAT else None, state


def _read_pickled(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of PyTorch about formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"weights: no such file: {path}") from None
    except Exception as error:  # torch raises many types for a damaged or foreign file
        raise UserError(f"weights: {path} is not a readable file of plain tensors: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Why PyTorch would not load a file, without its advice to run what is in it."""
    text = str(error) or type(error).__name__
    if "TorchScript" in text:
        return "it is a TorchScript archive; expected the network's state_dict()"
    if match := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it holds a {match[1]}, which may run code; expected the network's state_dict()"
    return text.splitlines()[0]


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"weights: {path}: tensor {name} holds NaN or infinity")


def _what(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(str, list(content)[:4])) or 'nothing'}"
    return type(content).__name__
