import numpy as np
import pytest

from ape_sr.data.degrade import bicubic_downscale, bicubic_upscale, modcrop


def cubic(x):
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def imresize_matrix(size: int, factor: float) -> np.ndarray:
    """MATLAB's weights along an axis: kernel widened when shrinking, borders mirrored."""
    out, stretch = round(size * factor), min(factor, 1)
    matrix = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) / factor - 0.5
        taps = np.arange(np.floor(centre - 2 / stretch), np.ceil(centre + 2 / stretch) + 1).astype(int)
        weight = cubic((centre - taps) * stretch)
        mirrored = np.where(taps < 0, -1 - taps, taps)
        mirrored = np.where(mirrored >= size, 2 * size - 1 - mirrored, mirrored)
        np.add.at(matrix[i], mirrored, weight / weight.sum())
    return matrix


def imresize(image: np.ndarray, factor: float) -> np.ndarray:
    levels = lambda x: np.floor(x + 0.5).clip(0, 255)  # noqa: E731
    down = levels(np.einsum("ih,hwc->iwc", imresize_matrix(image.shape[0], factor), image.astype(float)))
    return levels(np.einsum("jw,iwc->ijc", imresize_matrix(image.shape[1], factor), down)).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_shrinks_as_matlab(cat, scale):
    image = modcrop(cat, scale)
    assert np.array_equal(bicubic_downscale(image, scale), imresize(image, 1 / scale))


@pytest.mark.parametrize("scale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_enlarges_as_matlab(cat, scale):
    small = cat[:21, :17]
    assert np.array_equal(bicubic_upscale(small, scale), imresize(small, scale))


def test_modcrop_cuts_right_and_bottom(cat):
    assert np.array_equal(modcrop(cat[:50, :61], 4), cat[:48, :60])


def test_sides_must_divide(cat):
    with pytest.raises(ValueError, match="image: expected sides divisible by 4, got 61x50"):
        bicubic_downscale(cat[:50, :61], 4)
