import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_shuffle
from torch.utils.flop_counter import FlopCounterMode

from ape_kernels.collapse import collapse_interior, collapse_tail, linear_steps
from ape_sr.models import EDSR

SIZES = [(7, 7), (5, 4), (2, 3), (1, 1), (1, 6), (3, 1)]


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def affine_tail(scale: int, channels: int) -> nn.Sequential:
    model = EDSR(scale, 1, channels, None)
    return randomised(nn.Sequential(model.tail, model.add_mean))


def conv(src: int, dst: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(src, dst, kernel, padding=kernel // 2, bias=bias)


# what no published network has, but the adapters let through or the steps can say
ODD_TAILS = {
    "convolution": [conv(6, 3)],
    "5x5": [conv(6, 3, 5)],
    "no biases": [conv(6, 24, bias=False), nn.PixelShuffle(2), conv(6, 3, bias=False)],
    "shuffle by 1": [conv(6, 6), nn.PixelShuffle(1), conv(6, 3)],
    "shuffle last": [conv(6, 5), conv(5, 12), nn.PixelShuffle(2)],
    "2 then 3": [conv(6, 16), nn.PixelShuffle(2), conv(4, 45), nn.PixelShuffle(3), conv(5, 2)],
    "3 then 2": [conv(6, 36), nn.PixelShuffle(3), conv(4, 20), nn.PixelShuffle(2), conv(5, 2)],
    "1x1 among them": [conv(6, 16, 1), nn.PixelShuffle(2), conv(4, 5, 3), conv(5, 3, 1), conv(3, 1, 1)],
    "two at one size": [conv(6, 36), nn.PixelShuffle(3), conv(4, 5), conv(5, 4), conv(4, 1)],
}


def border_class(position: int, size: int) -> int:
    return 3 if size == 1 else 1 if position == 0 else 2 if position == size - 1 else 0


def apply_collapsed(tail, features, scale):
    """The collapsed tail's picture, pixel by pixel."""
    count, _, height, width = features.shape
    padded = pad(features, (2, 2, 2, 2))
    phases = features.new_empty(count, tail.kernel.shape[2], height, width)
    for y in range(height):
        for x in range(width):
            at = border_class(y, height), border_class(x, width)
            window = padded[:, :, y : y + 5, x : x + 5]
            phases[:, :, y : y + 1, x : x + 1] = conv2d(window, tail.kernel[at], tail.bias[at])
    return pixel_shuffle(phases, scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_collapsed_tail_equals_the_tail_at_every_pixel(scale, size):
    literal = affine_tail(scale, 6)
    features = torch.randn(2, 6, *size, dtype=torch.float64)
    picture = apply_collapsed(collapse_tail(linear_steps(literal)), features, scale)
    assert (picture - literal(features)).abs().max() < 1e-12


@pytest.mark.parametrize("name", ODD_TAILS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_chain_of_convolutions_and_shuffles_collapses(name, size):
    literal = randomised(nn.Sequential(*copy.deepcopy(ODD_TAILS[name])))
    features = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = literal(features)
    picture = apply_collapsed(collapse_tail(linear_steps(literal)), features, expected.shape[-1] // size[1])
    assert (picture - expected).abs().max() < 1e-12


def test_taps_outside_the_map_are_zero():
    tail = collapse_tail(linear_steps(affine_tail(2, 4)))
    assert not tail.kernel[1, :, :, :, :2].any() and not tail.kernel[:, 2, ..., 3:].any()
    assert not tail.kernel[3, 3, :, :, :2].any() and not tail.kernel[3, 3, ..., 3:].any()
    assert tail.kernel[3, 3, ..., 2, 2].any()


def test_interior_kernel_carries_gradients_to_the_tail():
    tail = affine_tail(2, 4)
    reference = copy.deepcopy(tail)
    features = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    inner = (Ellipsis, slice(2, -2), slice(2, -2))
    kernel, bias = collapse_interior(linear_steps(tail))
    pixel_shuffle(conv2d(features, kernel, bias, padding=2), 2)[inner].square().sum().backward()
    reference(features)[inner].square().sum().backward()
    for ours, literal in zip(tail[0].parameters(), reference[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, literal.grad)


def test_a_tail_that_reaches_too_far_is_refused():
    layers = [conv(4, 4), nn.PixelShuffle(1), conv(4, 4), nn.PixelShuffle(1), conv(4, 3)]
    with pytest.raises(ValueError, match="tail: expected to reach at most"):
        collapse_tail(linear_steps(layers))


@pytest.mark.parametrize(
    "layers",
    [[nn.PixelShuffle(2)], [conv(4, 4), nn.ReLU()], [nn.Conv2d(4, 4, 3)], [nn.Conv2d(4, 4, 3, padding=1, stride=2)]],
    ids=["shuffle first", "activation", "no padding", "stride"],
)
def test_other_layers_are_refused(layers):
    with pytest.raises(ValueError, match="tail: expected"):
        linear_steps(layers)


def test_the_collapse_costs_few_products_and_runs_no_convolution():
    """What a value of the picture takes from a pixel is followed once, for all border classes together.

    For scale 4 a value depends on 3 x 3 pixels of the last map and on 4 x 4 of the one before, and one row or column in
    eight of the latter is reached both by way of the border and not.
    """
    channels, scale = 16, 4
    steps = linear_steps(affine_tail(scale, channels))
    with FlopCounterMode(display=False) as counter:
        collapse_tail(steps)
    counts = counter.get_flop_counts()["Global"]
    assert not [operation for operation in counts if "conv" in str(operation)]
    one_row = 2 * 9 * channels**2
    phases = 3 * scale**2
    assert counter.get_total_flops() < phases * (9 + 4.5**2 + 0.5) * one_row
