import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_shuffle

from ape_kernels.collapse import collapse_interior, collapse_tail
from ape_sr.models import EDSR


def affine_tail(scale: int, channels: int) -> EDSR:
    torch.manual_seed(scale)
    model = EDSR(scale, 1, channels, None).double()
    for parameter in model.tail.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def border_class(position: int, size: int) -> int:
    return 3 if size == 1 else 1 if position == 0 else 2 if position == size - 1 else 0


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("size", [(7, 7), (5, 4), (2, 3), (1, 1), (1, 6), (3, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_collapsed_tail_equals_the_tail_at_every_pixel(scale, size):
    model = affine_tail(scale, 6)
    tail = collapse_tail(model.reconstruct, 6, 3, scale)
    features = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = model.reconstruct(features)
    padded = pad(features, (2, 2, 2, 2))
    height, width = size
    phases = torch.empty(2, 3 * scale**2, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            at = border_class(y, height), border_class(x, width)
            window = padded[:, :, y : y + 5, x : x + 5]
            phases[:, :, y : y + 1, x : x + 1] = conv2d(window, tail.kernel[at], tail.bias[at])
    assert (pixel_shuffle(phases, scale) - expected).abs().max() < 1e-12


def test_interior_kernel_carries_gradients_to_the_tail():
    model = affine_tail(2, 4)
    reference = copy.deepcopy(model)
    features = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    inner = (Ellipsis, slice(2, -2), slice(2, -2))
    kernel, bias = collapse_interior(model.reconstruct, 4, 3, 2, dtype=torch.float64, device=torch.device("cpu"))
    pixel_shuffle(conv2d(features, kernel, bias, padding=2), 2)[inner].square().sum().backward()
    reference.reconstruct(features)[inner].square().sum().backward()
    for ours, literal in zip(model.tail.parameters(), reference.tail.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, literal.grad)


def test_a_tail_of_another_scale_is_refused():
    with pytest.raises(ValueError, match="tail: expected output"):
        collapse_tail(affine_tail(2, 4).reconstruct, 4, 3, 3)
