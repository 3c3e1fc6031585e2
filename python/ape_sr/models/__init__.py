"""Backbones with exits. `NETWORKS` maps the name stored in checkpoints to the class."""

from __future__ import annotations

from typing import Any

from torch import nn

from ape_sr.models.base import ExitNetwork
from ape_sr.models.compact import SRVGGNetCompact
from ape_sr.models.ecbsr import ECBSR
from ape_sr.models.edsr import EDSR
from ape_sr.models.rcan import RCAN
from ape_sr.models.rrdb import RRDBNet
from ape_sr.models.swinir import SwinIR
from ape_sr.models.vdsr import VDSR

__all__ = [
    "ECBSR",
    "EDSR",
    "NETWORKS",
    "RCAN",
    "VDSR",
    "ExitNetwork",
    "RRDBNet",
    "SRVGGNetCompact",
    "SwinIR",
    "build_model",
    "model_name",
]

NETWORKS: dict[str, type[ExitNetwork]] = {
    "vdsr": VDSR,
    "ecbsr": ECBSR,
    "compact": SRVGGNetCompact,
    "edsr": EDSR,
    "rcan": RCAN,
    "rrdb": RRDBNet,
    "swinir": SwinIR,
}


def build_model(name: str, config: dict[str, Any]) -> ExitNetwork:
    """Build a network from its stored name and configuration; ValueError for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name](**config)


def model_name(model: nn.Module) -> str:
    """Name under which `model` is stored; ValueError for a class that is not in `NETWORKS`."""
    for name, network in NETWORKS.items():
        if type(model) is network:
            return name
    raise ValueError(f"model: expected one of {', '.join(NETWORKS)}, got {type(model).__name__}")
