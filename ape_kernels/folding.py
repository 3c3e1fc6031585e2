"""Squares of pixels as channels, for networks that read those (`PatchProgram.fold`)."""

from __future__ import annotations

import torch
from torch import Tensor


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """``[N, C, H, W]`` extended by reflection at the bottom and the right until `multiple` divides both sides.

    H and W may be any size from 1 on.
    """
    if image.shape[2] % multiple == image.shape[3] % multiple == 0:
        return image

    def index(size: int) -> Tensor:
        period = max(1, 2 * (size - 1))
        steps = torch.arange(size + -size % multiple, device=image.device) % period
        return torch.where(steps < size, steps, period - steps)

    return image[:, :, index(image.shape[2])[:, None], index(image.shape[3])]


def fold_pixels(image: Tensor, factor: int) -> Tensor:
    """``[N, C, H, W]`` to ``[N, C * factor**2, H / factor, W / factor]``: each square of pixels becomes one pixel.

    The channels are in ``F.pixel_unshuffle`` order. An image whose sides the factor does not divide is extended by
    reflection first; H / factor and W / factor are then rounded up.
    """
    if factor == 1:
        return image
    return torch.nn.functional.pixel_unshuffle(reflect_to_multiple(image, factor), factor)
