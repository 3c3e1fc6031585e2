"""Checks of a user's modules. Each failure names the path of the module and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

# A user's network, or a part of it, that is read by its attributes. No type can promise what they hold: the functions
# here look at it when it is read.
Network = Any


class NotRecognised(ValueError):
    """A network cannot be run. The message names the module, what was expected and what came."""


def refuse(path: str, expected: str, got: object) -> NotRecognised:
    """The error for the module at `path`, to be raised by the caller."""
    came = type(got).__name__ if isinstance(got, nn.Module) else got
    return NotRecognised(f"model.{path}: expected {expected}, got {came}")


def has_parts(module: nn.Module, paths: Sequence[str]) -> bool:
    """Whether there is a submodule at every one of `paths`, such as "tail.conv_hr"."""
    return all(part_at(module, path) is not None for path in paths)


def part_at(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at `path`, or None."""
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def expect_sequence(module: object, path: str, length: int | None = None) -> list[Network]:
    """The children of an `nn.Sequential`. There must be `length` of them, if that is given."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        raise refuse(path, "an nn.Sequential", module)
    if length is not None and len(module) != length:
        raise refuse(path, f"{length} layers", f"{len(module)} ({_names(module)})")
    return list(module)


def expect_conv(
    module: object, path: str, *, kernel: int, in_channels: int | None = None, out_channels: int | None = None
) -> nn.Conv2d:
    """A plain `nn.Conv2d` of these sizes: stride 1, padded with zeros so that height and width stay."""
    if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
        raise refuse(path, f"an nn.Conv2d {kernel}x{kernel}", module)
    same = module.padding == "same" or module.padding == (kernel // 2, kernel // 2)
    for name, expected, got in (
        ("kernel_size", (kernel, kernel), module.kernel_size),
        ("stride", (1, 1), module.stride),
        ("dilation", (1, 1), module.dilation),
        ("groups", 1, module.groups),
        ("padding_mode", "zeros", module.padding_mode),
        ("padding", kernel // 2, kernel // 2 if same else module.padding),
        ("in_channels", in_channels or module.in_channels, module.in_channels),
        ("out_channels", out_channels or module.out_channels, module.out_channels),
    ):
        if expected != got:
            raise refuse(path, f"{name} {expected}", got)
    if "weight" in vars(module):
        raise refuse(path, "a weight that is a parameter", "one that a hook computes at every call (weight norm?)")
    return module


def expect_only_children(module: nn.Module, path: str, allowed: Sequence[str]) -> None:
    """Refuse submodules that the family does not have. They may do something that the program would leave out.

    A network itself (path "") may have a regressor, from which every family reads its exits (`parts.exits`).
    """
    for name, child in module.named_children():
        if name not in allowed and (path or name != "regressor"):
            raise refuse(f"{path}{name}", f"no such submodule (only {', '.join(allowed)})", child)


def expect_number(value: object, path: str) -> float:
    """A Python number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(path, "a number", type(value).__name__)
    return float(value)


def expect_whole(value: object, path: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refuse(path, "a whole number of at least 1", repr(value))
    return value


def _names(module: nn.Module) -> str:
    return ", ".join(type(child).__name__ for child in module.children())
