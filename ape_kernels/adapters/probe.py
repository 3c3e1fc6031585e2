"""What a network does with its pixels before a part of it, seen by running its forward up to there."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 4  # height and width of the patch that is run


class _Reached(Exception):
    """Stops a forward."""


def probe_patch(like: Tensor, colors: int) -> Tensor:
    """The patch that is run: ``[1, colors, SIDE, SIDE]`` from 0 to 1, on the device and in the dtype of `like`."""
    generator = torch.Generator().manual_seed(0)
    patch = torch.rand(1, colors, SIDE, SIDE, generator=generator, dtype=torch.float32, device="cpu")
    return patch.to(like.device, like.dtype)


def entering(model: nn.Module, part: nn.Module, patch: Tensor) -> Tensor | None:
    """What `part` is given when `model` is run on `patch`, in float32. None if it is never called or something fails.

    The forward ends there: nothing after `part` is run, and no gradient is kept.
    """
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def look(_: nn.Module, given: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:  # another thread may be using the network
            seen.append(given[0].detach().float().clone())
            raise _Reached

    hook = part.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            model(patch.clone())
    except Exception:  # _Reached, or what the forward raised: then the check of the whole program says what is wrong
        pass
    finally:
        hook.remove()
    return seen[0] if seen else None
