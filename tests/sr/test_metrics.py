import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ape_sr.metrics import batch_psnr, psnr_rgb, psnr_y, ssim_rgb, ssim_y


@pytest.fixture
def pair(cat):
    noise = np.random.default_rng(0).normal(0, 6, cat.shape)
    return (cat + noise).clip(0, 255).astype(np.uint8), cat


def luma(image):
    r, g, b = (image[..., c].astype(float) / 255 for c in range(3))
    return 16 + 65.481 * r + 128.553 * g + 24.966 * b


def test_psnr_y_is_that_of_the_bt601_luma(pair):
    sr, hr = pair
    mse = ((luma(sr) - luma(hr))[4:-4, 4:-4] ** 2).mean()
    assert psnr_y(sr, hr, 4) == pytest.approx(10 * math.log10(255**2 / mse), abs=0.01)


@pytest.mark.parametrize(
    ("metric", "border"),
    [(psnr_y, 4), (ssim_y, 4), (psnr_rgb, 10), (ssim_rgb, 10)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_borders(pair, metric, border):
    sr, hr = pair
    spoilt = sr.copy()
    spoilt[:border] = spoilt[-border:] = spoilt[:, :border] = spoilt[:, -border:] = 0
    assert metric(spoilt, hr, 4) == metric(sr, hr, 4)
    spoilt[border] = 0
    assert metric(spoilt, hr, 4) < metric(sr, hr, 4)


def test_psnr_rgb_is_over_all_channels(pair):
    sr, hr = pair
    mse = ((sr[10:-10, 10:-10].astype(float) - hr[10:-10, 10:-10]) ** 2).mean()
    assert psnr_rgb(sr, hr, 4) == pytest.approx(10 * math.log10(255**2 / mse))


def test_ssim_follows_its_formula(pair):
    a, b = (luma(image)[4:-4, 4:-4] for image in pair)
    blur = lambda x: gaussian_filter(x, 1.5, radius=5)  # noqa: E731
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert ssim_y(*pair, 4) == pytest.approx(ssim[5:-5, 5:-5].mean(), abs=2e-3)


def test_equal_pictures(cat):
    assert psnr_y(cat, cat, 2) == psnr_rgb(cat, cat, 2) == math.inf
    assert ssim_y(cat, cat, 2) == pytest.approx(1)
    assert ssim_rgb(cat, cat, 2) == pytest.approx(1)


def test_batch_psnr_is_one_number_a_picture():
    hr = torch.rand(3, 3, 20, 20)
    sr = hr + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    assert batch_psnr(sr, hr, 2).tolist() == pytest.approx([20, 40, 120], abs=0.01)


def test_mismatches_are_named(cat):
    with pytest.raises(ValueError, match="sr: expected the shape of hr"):
        psnr_y(cat[1:], cat, 4)
    with pytest.raises(ValueError, match="sr: expected sides over 20 pixels, got 20x20"):
        psnr_rgb(cat[:20, :20], cat[:20, :20], 4)
    with pytest.raises(ValueError, match="border: expected less than half"):
        batch_psnr(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), 4)
