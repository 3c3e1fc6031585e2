"""Enlarging without the network. The oracle of the other backends."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def interpolate(image: Tensor, scale: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B, C, s * H, s * W]``, not clamped.

    Bicubic as PyTorch's: a = -0.75, half-pixel centres, indices clamped at the border of the image.
    """
    return functional.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
