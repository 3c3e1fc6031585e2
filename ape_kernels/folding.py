"""Squares of pixels as channels, for networks that read those (`PatchProgram.fold`)."""

from __future__ import annotations

import torch
from torch import Tensor


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """``[N, C, H, W]`` reflected past its bottom and right until both sides are multiples; any size of at least 1."""
    if image.shape[2] % multiple == image.shape[3] % multiple == 0:
        return image

    def index(size: int) -> Tensor:
        period = max(1, 2 * (size - 1))
        steps = torch.arange(size + -size % multiple, device=image.device) % period
        return torch.where(steps < size, steps, period - steps)

    return image[:, :, index(image.shape[2])[:, None], index(image.shape[3])]


def fold_pixels(image: Tensor, factor: int) -> Tensor:
    """``[N, C, H, W]`` to ``[N, C * factor**2, H / factor, W / factor]``: squares of pixels into channels.

    Channels in ``F.pixel_unshuffle`` order. Sides that the factor does not divide are reflected first: H / factor
    and W / factor round up.
    """
    if factor == 1:
        return image
    return torch.nn.functional.pixel_unshuffle(reflect_to_multiple(image, factor), factor)
