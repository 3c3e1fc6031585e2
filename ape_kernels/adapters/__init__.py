"""Adapters: a user's `nn.Module` to a `PatchProgram`, one file per network family.

An adapter recognises a network by its structure (attribute names, layer types, shapes), never by its
class. It refuses whatever is not exactly what it knows. `check_program` then compares the program
with the network's own forward, so that a forward which does something else than its layers suggest is
refused too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ape_kernels.adapters import basicsr, compact, ecbsr, edsr, rcan, rrdb, span, srresnet, swinir, transformers, vdsr
from ape_kernels.adapters.recognise import NotRecognised, part_at
from ape_kernels.autocast import without_autocast
from ape_kernels.program import PatchProgram
from ape_kernels.wrappers import Wrapper

__all__ = ["ADAPTERS", "Adapter", "NotRecognised", "to_program"]


class Adapter(NamedTuple):
    """layouts: for each layout of the family, the paths of the submodules by which it is known.

    matches: whether a network has this family's outline. convert: the program, or NotRecognised.
    """

    name: str
    layouts: tuple[tuple[str, ...], ...]
    matches: Callable[[nn.Module], bool]
    convert: Callable[[nn.Module], PatchProgram]


ADAPTERS = (
    Adapter(
        "ECBSR", ecbsr.LAYOUTS, ecbsr.matches, ecbsr.convert
    ),  # before EDSR: it has head, body and tail too, and upsample
    Adapter("VDSR", vdsr.LAYOUTS, vdsr.matches, vdsr.convert),
    Adapter("SRVGGNetCompact", compact.LAYOUTS, compact.matches, compact.convert),
    Adapter(
        "RRDBNet", rrdb.LAYOUTS, rrdb.matches, rrdb.convert
    ),  # before EDSR: its authors' layout has the same outline
    Adapter("RCAN", rcan.LAYOUTS, rcan.matches, rcan.convert),  # before EDSR: its groups have the same outline
    Adapter("EDSR", edsr.LAYOUTS, edsr.matches, edsr.convert),
    Adapter(
        "HAT or DAT", transformers.LAYOUTS, transformers.matches, transformers.convert
    ),  # before SwinIR: it has the same outline too
    Adapter("SwinIR", swinir.LAYOUTS, swinir.matches, swinir.convert),
    Adapter("SRResNet", srresnet.LAYOUTS, srresnet.matches, srresnet.convert),
    Adapter("SPAN", span.LAYOUTS, span.matches, span.convert),
    Adapter("EDSR or RCAN", basicsr.LAYOUTS, basicsr.matches, basicsr.convert),
)


def to_program(model: nn.Module) -> PatchProgram:
    """The patch program of `model`, sharing its weights.

    Some layers do not tell what the forward does with the pixels before the first of them. Then the network's forward
    is run up to there, on a few pixels.

    Raises TypeError when `model` is no `nn.Module`, or wraps one as `APEForward` does, and NotRecognised (a ValueError)
    when no adapter knows its outline, or a part is not what its family has there. The message names the nearest family
    and the first difference.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, Wrapper):
        raise TypeError(f"model: expected a network, got the {type(model).__name__} of one; give its .model")
    for adapter in ADAPTERS:
        if adapter.matches(model):
            try:
                with without_autocast():
                    return adapter.convert(model)
            except NotRecognised as error:
                raise NotRecognised(f"{error} (nearest family: {adapter.name})") from None
    raise _unknown(model)


def _unknown(model: nn.Module) -> NotRecognised:
    """The refusal of a network that has no known outline."""
    likeness: dict[tuple[str, ...], tuple[float, Adapter]] = {}
    for adapter in ADAPTERS:
        for layout in adapter.layouts:
            present = sum(part_at(model, path) is not None for path in layout)
            if present < len(layout):
                likeness[layout] = (
                    present / len(layout) + present / 1000,
                    adapter,
                )  # where shares are equal, the longer one
    nearest = max(reversed(likeness), key=lambda layout: likeness[layout][0])
    score, adapter = likeness[nearest]
    if score == 0:
        known = ", ".join(dict.fromkeys(name for adapter in ADAPTERS for name in adapter.name.split(" or ")))
        parts = ", ".join(name for name, _ in model.named_children()) or "no submodules"
        return NotRecognised(f"model: {type(model).__name__} ({parts}) is like no known network ({known})")
    missing = next(path for path in nearest if part_at(model, path) is None)
    there = ", ".join(path for path in nearest if part_at(model, path) is not None)
    return NotRecognised(
        f"model.{missing}: expected a submodule beside {there}, got none (nearest family: {adapter.name})"
    )
