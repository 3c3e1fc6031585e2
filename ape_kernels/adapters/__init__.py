"""Adapters: a user's `nn.Module` to a `PatchProgram`, one file a network family.

An adapter recognises a network by its structure (attribute names, layer types, shapes), never by its
class, and refuses whatever is not exactly what it knows. `check_program` then compares the program
with the network's own forward, so that a forward which does something else than its layers suggest is
refused as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ape_kernels.adapters import basicsr, compact, ecbsr, edsr, rcan, rrdb, swinir, vdsr
from ape_kernels.adapters.recognise import NotRecognised
from ape_kernels.program import PatchProgram

__all__ = ["ADAPTERS", "Adapter", "NotRecognised", "to_program"]


class Adapter(NamedTuple):
    """matches: whether a network has this family's outline. convert: the program, or NotRecognised."""

    name: str
    outline: str
    matches: Callable[[nn.Module], bool]
    convert: Callable[[nn.Module], PatchProgram]


ADAPTERS = (
    Adapter("ecbsr", ecbsr.OUTLINE, ecbsr.matches, ecbsr.convert),  # before edsr: head, body, tail, and upsample
    Adapter("vdsr", vdsr.OUTLINE, vdsr.matches, vdsr.convert),
    Adapter("compact", compact.OUTLINE, compact.matches, compact.convert),
    Adapter("rrdb", rrdb.OUTLINE, rrdb.matches, rrdb.convert),  # before edsr: its authors' layout has that outline too
    Adapter("rcan", rcan.OUTLINE, rcan.matches, rcan.convert),  # before edsr: groups have its outline too
    Adapter("edsr", edsr.OUTLINE, edsr.matches, edsr.convert),
    Adapter("swinir", swinir.OUTLINE, swinir.matches, swinir.convert),
    Adapter("basicsr", basicsr.OUTLINE, basicsr.matches, basicsr.convert),
)


def to_program(model: nn.Module) -> PatchProgram:
    """The patch program of `model`, sharing its weights.

    Raises TypeError when `model` is no `nn.Module` and NotRecognised (a ValueError) when no adapter
    knows its outline or a part is not what its family has there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for adapter in ADAPTERS:
        if adapter.matches(model):
            return adapter.convert(model)
    known = "; ".join(f"{adapter.name}: {adapter.outline}" for adapter in ADAPTERS)
    parts = ", ".join(name for name, _ in model.named_children()) or "no submodules"
    raise NotRecognised(f"model: {type(model).__name__} ({parts}) has the outline of no known network ({known})")
