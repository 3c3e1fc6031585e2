"""Bicubic resizing as MATLAB's `imresize` does it, the convention of the benchmark sets.

Cubic kernel with a = -0.5, widened when shrinking (antialiasing), borders mirrored, rows first and
then columns, each pass rounded half up to uint8. The rounding between the passes matters: with it
the pictures agree with published low-resolution sets to the last grey level.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

MARGIN = 4  # low-resolution pixels mirrored at each border; the kernel reaches two


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    """Crop ``[H, W, 3]`` at the right and bottom so that `scale` divides both sides."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def bicubic_downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink uint8 ``[H, W, 3]`` by `scale`, which must divide both sides (ValueError otherwise)."""
    height, width = image.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"image: expected sides divisible by {scale}, got {width}x{height}")
    return _resize(image, (height // scale, width // scale), margin=(MARGIN * scale, MARGIN))


def bicubic_upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge uint8 ``[H, W, 3]`` by `scale`."""
    height, width = image.shape[:2]
    return _resize(image, (height * scale, width * scale), margin=(MARGIN, MARGIN * scale))


def _resize(image: np.ndarray, size: tuple[int, int], margin: tuple[int, int]) -> np.ndarray:
    """Resize to `size` = (height, width); `margin` = mirrored pixels added before, cut after."""
    added, cut = margin
    padded = np.pad(image, [(added, added), (added, added), (0, 0)], mode="symmetric")
    planes = torch.from_numpy(padded).permute(2, 0, 1)[None].double()
    height, width = size[0] + 2 * cut, size[1] + 2 * cut
    for target in ((height, planes.shape[-1]), (height, width)):
        # torch renormalises the kernel at borders where MATLAB mirrors: only the margin sees that
        planes = _to_grey_levels(interpolate(planes, size=target, mode="bicubic", antialias=True, align_corners=False))
    return planes[0, :, cut:-cut, cut:-cut].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()


def _to_grey_levels(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
