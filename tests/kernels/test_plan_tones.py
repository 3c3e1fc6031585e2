"""The table of what a network adds to flat colours, and images with that added."""

import pytest
import torch

from ape_kernels.plan.tones import measure_tones, toned

CPU = torch.device("cpu")
SIZE = 4


def network(shift, value_range):
    """Doubles a picture and adds `shift`, a function of colours from 0 to 1; zeros leak in from outside."""

    def run(patches):
        colours = torch.nn.functional.interpolate(patches, scale_factor=2)
        answer = colours + shift(colours / value_range) * value_range
        answer[:, :, :8] = answer[:, :, -8:] = 0.0
        return answer

    return run


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_a_smooth_shift_needs_five_colours_an_axis(value_range):
    shift = lambda c: 0.03 * (1 - c)  # noqa: E731
    tones = measure_tones(network(shift, value_range), value_range, CPU)
    assert tones.shape == (5, 5, 5, 3)
    flat = torch.tensor([0.1, 0.6, 0.93])[None, :, None, None].expand(1, 3, 4, 4) * value_range
    expected = flat + shift(flat / value_range) * value_range
    assert (toned(flat, tones, value_range) - expected).abs().max() < 1e-5 * value_range


def test_a_shift_that_bends_gets_nine():
    tones = measure_tones(network(lambda c: 0.05 * torch.sin(9 * c), 1.0), 1.0, CPU)
    assert tones.shape == (9, 9, 9, 3)
    # axes in the order of the channels: the shift of a channel depends on that channel alone
    assert torch.allclose(tones[3, :, :, 0], tones[3, 0, 0, 0].expand(9, 9), atol=1e-6)
    assert not torch.allclose(tones[:, 0, 0, 0], tones[0, 0, 0, 0].expand(9), atol=1e-3)


def test_next_to_no_shift_is_none():
    assert measure_tones(network(lambda c: 0.001 * c, 1.0), 1.0, CPU) is None


def table(shift):
    """`shift` maps colours [N, 3] in [0, 1] to shifts [N, 3]."""
    axis = torch.linspace(0, 1, SIZE)
    colours = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return shift(colours.reshape(-1, 3)).reshape(SIZE, SIZE, SIZE, 3)


def flat(colour, value_range=1.0):
    return (torch.tensor(colour) * value_range)[None, :, None, None].expand(1, 3, 5, 6).contiguous()


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_a_shift_that_is_linear_along_each_axis_is_met_everywhere(value_range):
    # a trilinear table is exact for products of the three values
    shift = lambda c: torch.stack([c[:, 0] * c[:, 1], 0.5 - c[:, 2], c.prod(1)], 1) * 0.1  # noqa: E731
    tones = table(shift) * value_range
    for colour in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.31, 0.74, 0.12], [1 / 3, 2 / 3, 0.9]):
        got = toned(flat(colour, value_range), tones, value_range)
        expected = (torch.tensor([colour]) + shift(torch.tensor([colour])))[0] * value_range
        assert (got - expected[None, :, None, None]).abs().max() < 1e-6 * value_range


def test_axes_are_red_green_blue():
    tones = torch.zeros(SIZE, SIZE, SIZE, 3)
    tones[-1, 0, 1] = torch.tensor([0.1, 0.2, 0.3])
    got = toned(flat([1.0, 0.0, 1 / 3]), tones, 1.0)
    assert torch.allclose(got[0, :, 2, 2], torch.tensor([1.1, 0.2, 1 / 3 + 0.3]), atol=1e-6)


def test_colours_outside_the_range_are_shifted_as_the_nearest_inside():
    shift = lambda c: c * 0.1  # noqa: E731
    got = toned(flat([-0.5, 1.5, 0.5]), table(shift), 1.0)
    assert torch.allclose(got[0, :, 3, 3], torch.tensor([-0.5, 1.6, 0.55]), atol=1e-6)


def test_pixels_are_shifted_each_by_its_own_colour():
    images = torch.rand(2, 3, 9, 7)
    got = toned(images, table(lambda c: c * 0.1), 1.0)
    assert torch.allclose(got, images * 1.1, atol=1e-6)
