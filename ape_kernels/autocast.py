"""Where autocast holds: the kernels say themselves in which dtype they compute."""

from __future__ import annotations

from contextlib import ExitStack

import torch

_KINDS = ("cpu", "cuda")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast asks for on this device; None where there is no autocast."""
    if device.type in _KINDS and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast() -> ExitStack:
    """A context in which no operation changes its dtype."""
    stack = ExitStack()
    for kind in _KINDS:
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
