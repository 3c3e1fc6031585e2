"""Enlarging without the network: bicubic interpolation, then the network's own tones. The oracle of the other backends.

A network may shift the colours of flat areas, by an amount that depends on the colour alone. The table `tones` holds
that shift for colours on a regular grid; between them it is interpolated linearly along the three axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def interpolate(image: Tensor, scale: int, tones: Tensor | None = None, value_range: float = 1.0) -> Tensor:
    """``[B, C, H, W]`` to ``[B, C, s * H, s * W]``, not clamped.

    Bicubic as PyTorch's: a = -0.75, half-pixel centres, indices clamped at the border of the image.
    tones: float32 ``[N, N, N, 3]``, N at least 2, for images of three channels; None for no shift. ``tones[i, j, k]``
        is what the network adds to a flat area of the colour ``(i, j, k) * value_range / (N - 1)``: its answer minus
        that colour.
    value_range: what white is. A colour outside 0 to value_range is shifted as the nearest one inside.
    """
    enlarged = functional.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    return enlarged if tones is None else enlarged + _shift(enlarged, tones, value_range)


def _shift(colours: Tensor, tones: Tensor, value_range: float) -> Tensor:
    """What `tones` adds to colours ``[B, 3, H, W]``: trilinear, the axes taken one after the other, blue first."""
    last = len(tones) - 1
    position = (colours * (last / value_range)).clamp(0, last)
    cell = position.floor().clamp(max=last - 1)
    part = (position - cell).permute(1, 0, 2, 3)[..., None]  # [3, B, H, W, 1]
    red, green, blue = cell.long().unbind(1)
    corners = [tones[red + i, green + j, blue + k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    for axis in (2, 1, 0):
        corners = [torch.lerp(low, high, part[axis]) for low, high in zip(corners[::2], corners[1::2], strict=True)]
    return corners[0].permute(0, 3, 1, 2)
