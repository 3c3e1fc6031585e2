"""The table of what a network adds to flat colours."""

import pytest
import torch

from ape_kernels.backends.torch.interpolate import interpolate
from ape_kernels.plan.tones import measure_tones

CPU = torch.device("cpu")


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
    assert (interpolate(flat, 1, tones, value_range) - expected).abs().max() < 1e-5 * value_range


def test_a_shift_that_bends_gets_nine():
    tones = measure_tones(network(lambda c: 0.05 * torch.sin(9 * c), 1.0), 1.0, CPU)
    assert tones.shape == (9, 9, 9, 3)
    # axes in the order of the channels: the shift of a channel depends on that channel alone
    assert torch.allclose(tones[3, :, :, 0], tones[3, 0, 0, 0].expand(9, 9), atol=1e-6)
    assert not torch.allclose(tones[:, 0, 0, 0], tones[0, 0, 0, 0].expand(9), atol=1e-3)


def test_next_to_no_shift_is_none():
    assert measure_tones(network(lambda c: 0.001 * c, 1.0), 1.0, CPU) is None
