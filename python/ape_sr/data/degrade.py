"""Bicubic resizing as MATLAB's `imresize` does it, which is the convention of the benchmark sets.

The cubic kernel has a = -0.5 and is widened when shrinking (antialiasing). Borders are mirrored. Rows are resized first
and then columns, and each pass rounds to uint8, half up. The rounding between the passes matters: with it the pictures
equal those of published low-resolution sets in every grey level.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

MIRRORED = 4  # low-resolution pixels that are mirrored at each border; the kernel reaches two of them


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    """Crop ``[H, W, 3]`` at the right and the bottom so that `scale` divides both sides."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def bicubic_downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink uint8 ``[H, W, 3]`` by `scale`. Raises ValueError unless `scale` divides both sides."""
    height, width = image.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"image: expected sides divisible by {scale}, got {width}x{height}")
    return _resize(image, (height // scale, width // scale), mirrored=(MIRRORED * scale, MIRRORED))


def bicubic_upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge uint8 ``[H, W, 3]`` by `scale`."""
    height, width = image.shape[:2]
    return _resize(image, (height * scale, width * scale), mirrored=(MIRRORED, MIRRORED * scale))


def _resize(image: np.ndarray, size: tuple[int, int], mirrored: tuple[int, int]) -> np.ndarray:
    """Resize to `size` (height, width). mirrored: pixels that are added at each side before, and cut after."""
    added, cut = mirrored
    padded = np.pad(image, [(added, added), (added, added), (0, 0)], mode="symmetric")
    planes = torch.from_numpy(padded).permute(2, 0, 1)[None].double()
    height, width = size[0] + 2 * cut, size[1] + 2 * cut
    for target in ((height, planes.shape[-1]), (height, width)):
        # At borders torch renormalises the kernel, where MATLAB mirrors. This affects only the pixels that are cut.
        planes = _to_grey_levels(interpolate(planes, size=target, mode="bicubic", antialias=True, align_corners=False))
    return planes[0, :, cut:-cut, cut:-cut].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()


def _to_grey_levels(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
