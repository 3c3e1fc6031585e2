"""Interpolation in the network's own tones, as the torch backend renders it."""

import pytest
import torch

from ape_kernels.backends.torch.interpolate import interpolate

SIZE = 4


def table(shift):
    """`shift` maps colours [N, 3] in [0, 1] to shifts [N, 3]."""
    axis = torch.linspace(0, 1, SIZE)
    colours = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return shift(colours.reshape(-1, 3)).reshape(SIZE, SIZE, SIZE, 3)


def flat(colour, value_range=1.0):
    return (torch.tensor(colour) * value_range)[None, :, None, None].expand(1, 3, 5, 6).contiguous()


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_without_tones_it_is_pytorchs_bicubic(scale):
    image = torch.rand(2, 3, 9, 7)
    expected = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    assert torch.equal(interpolate(image, scale), expected)
    assert torch.equal(interpolate(image, scale, torch.zeros(SIZE, SIZE, SIZE, 3)), expected)


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_a_shift_that_is_linear_along_each_axis_is_met_everywhere(value_range):
    # a trilinear table is exact for products of the three values
    shift = lambda c: torch.stack([c[:, 0] * c[:, 1], 0.5 - c[:, 2], c.prod(1)], 1) * 0.1  # noqa: E731
    tones = table(shift) * value_range
    for colour in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.31, 0.74, 0.12], [1 / 3, 2 / 3, 0.9]):
        got = interpolate(flat(colour, value_range), 2, tones, value_range)
        expected = (torch.tensor([colour]) + shift(torch.tensor([colour])))[0] * value_range
        assert got.shape == (1, 3, 10, 12)
        assert (got - expected[None, :, None, None]).abs().max() < 1e-6 * value_range


def test_axes_are_red_green_blue():
    tones = torch.zeros(SIZE, SIZE, SIZE, 3)
    tones[-1, 0, 1] = torch.tensor([0.1, 0.2, 0.3])
    got = interpolate(flat([1.0, 0.0, 1 / 3]), 1, tones)
    assert torch.allclose(got[0, :, 2, 2], torch.tensor([1.1, 0.2, 1 / 3 + 0.3]), atol=1e-6)


def test_colours_outside_the_range_are_shifted_as_the_nearest_inside():
    shift = lambda c: c * 0.1  # noqa: E731
    got = interpolate(flat([-0.5, 1.5, 0.5]), 2, table(shift))
    assert torch.allclose(got[0, :, 3, 3], torch.tensor([-0.5, 1.6, 0.55]), atol=1e-6)
