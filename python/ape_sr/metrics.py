"""PSNR and SSIM as super-resolution papers report them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# ITU-R BT.601 luma of 8-bit RGB. PSNR depends on differences only, so it leaves out the offset of 16.
LUMA = np.array([65.738, 129.057, 25.064]) / 256


def psnr_y(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """PSNR in dB on the Y channel, without a border of `scale` pixels, as for benchmark sets (Set5, Urban100, ...).

    sr, hr: uint8 ``[H, W, 3]``. Equal pictures give infinity. Raises ValueError when the shapes differ or are too
    small.
    """
    difference = (_checked(sr, hr, scale).astype(np.float64) - hr) @ LUMA
    return _psnr(_cut(difference, scale))


def psnr_rgb(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """PSNR in dB over all three channels, without a border of `scale + 6` pixels, as in DIV2K's validation.

    sr, hr: uint8 ``[H, W, 3]``. Equal pictures give infinity. Raises ValueError when the shapes differ or are too
    small.
    """
    difference = _checked(sr, hr, scale + 6).astype(np.float64) - hr
    return _psnr(_cut(difference, scale + 6))


def ssim_y(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """SSIM (Wang et al. 2004: 11x11 Gaussian, sigma 1.5) of the Y channels, without a border of `scale` pixels.

    sr, hr: uint8 ``[H, W, 3]``. Raises ValueError when the shapes differ or are too small.
    """
    sr_luma, hr_luma = (
        _cut(image.astype(np.float64) @ LUMA + 16, scale) for image in (_checked(sr, hr, scale + 6), hr)
    )
    return _ssim(sr_luma, hr_luma)


def ssim_rgb(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Mean SSIM of the three channels, without a border of `scale + 6` pixels.

    sr, hr: uint8 ``[H, W, 3]``. Raises ValueError when the shapes differ or are too small.
    """
    sr, hr = _cut(_checked(sr, hr, scale + 6), scale + 6), _cut(hr, scale + 6)
    return float(np.mean([_ssim(sr[..., c].astype(np.float64), hr[..., c].astype(np.float64)) for c in range(3)]))


def batch_psnr(sr: Tensor, hr: Tensor, border: int, data_range: float = 1.0) -> Tensor:
    """PSNR in dB of every picture of a batch, without `border` pixels at each side: float32 ``[N]``.

    sr, hr: ``[N, C, H, W]``, values from 0 to `data_range`. Equal pictures give 120 dB for a data_range of 1.
    Raises ValueError when the border leaves no pixels.
    """
    height, width = sr.shape[-2:]
    if min(height, width) <= 2 * border:
        raise ValueError(f"border: expected less than half of {width}x{height} pixels, got {border}")
    inner = (slice(None), slice(None), slice(border, height - border), slice(border, width - border))
    mse = (sr[inner].float() - hr[inner].float()).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp_min(1e-12) / data_range**2)


def _checked(sr: np.ndarray, hr: np.ndarray, border: int) -> np.ndarray:
    if sr.shape != hr.shape:
        raise ValueError(f"sr: expected the shape of hr, {hr.shape}, got {sr.shape}")
    if min(sr.shape[:2]) <= 2 * border:
        raise ValueError(f"sr: expected sides over {2 * border} pixels, got {sr.shape[1]}x{sr.shape[0]}")
    return sr


def _cut(image: np.ndarray, border: int) -> np.ndarray:
    return image[border:-border, border:-border]


def _psnr(difference: np.ndarray) -> float:
    mse = float(np.mean(difference**2))
    return float("inf") if mse == 0 else 10 * np.log10(255**2 / mse)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    options: Any = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(cast(float, structural_similarity(a, b, data_range=255, **options)))
