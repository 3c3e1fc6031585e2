"""SPAN: its convolutions fold exactly and the network equals its own forward; near misses are refused by name."""

import pytest
import torch
from families import assert_refused, edit, randomise
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import conv2d, pad

from ape_kernels import APEForward, add_exits, to_program
from ape_kernels.adapters.span import fold_span_conv

SIZES = [(1, 1), (3, 29), (8, 6)]
CHANNELS = 8


class Conv3XC(nn.Module):
    """Three convolutions in a row and one beside them in training mode, one that they add up to in evaluation mode."""

    def __init__(self, c_in: int, c_out: int, gain: int = 2) -> None:
        super().__init__()
        self.has_relu = False
        self.sk = nn.Conv2d(c_in, c_out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c_in * gain, 1), nn.Conv2d(c_in * gain, c_out * gain, 3), nn.Conv2d(c_out * gain, c_out, 1)
        )
        self.eval_conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x):
        if self.training:
            return self.conv(pad(x, (1, 1, 1, 1))) + self.sk(x)
        first, second, third = (layer.weight for layer in self.conv)
        weight = torch.einsum("om,mnyx,ni->oiyx", third[:, :, 0, 0], second, first[:, :, 0, 0])
        bias = third[:, :, 0, 0] @ (second.sum(dim=(2, 3)) @ self.conv[0].bias + self.conv[1].bias) + self.conv[2].bias
        self.eval_conv.weight.data = weight + pad(self.sk.weight, (1, 1, 1, 1))
        self.eval_conv.bias.data = bias + self.sk.bias
        return self.eval_conv(x)


class SPAB(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(CHANNELS, CHANNELS) for _ in range(3))
        self.act1, self.act2 = nn.SiLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x):
        out1 = self.c1_r(x)
        out1_act = self.act1(out1)  # in place: what is handed on as out1 is activated
        out3 = self.c3_r(self.act1(self.c2_r(out1_act)))
        gate = torch.sigmoid(out3) - 0.5
        return (out3 + x) * gate, out1, gate


class SPAN(nn.Module):
    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.img_range, self.mean = 2.0, torch.tensor((0.4488, 0.4371, 0.4040)).view(1, 3, 1, 1)
        self.conv_1, self.conv_2 = Conv3XC(3, CHANNELS), Conv3XC(CHANNELS, CHANNELS)
        for i in range(6):
            setattr(self, f"block_{i + 1}", SPAB())
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        randomise(self, gain=1.2).to(DEVICE)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        features = self.conv_1((x - self.mean) * self.img_range)
        stream, first = features, None
        for i in range(6):
            stream, late, _ = getattr(self, f"block_{i + 1}")(stream)
            first = stream if first is None else first
        return self.upsampler(self.conv_cat(torch.cat([features, self.conv_2(stream), first, late], 1)))


@pytest.mark.parametrize("scale", [1, 2, 4], ids=lambda s: f"x{s}")
def test_equals_its_forward(scale):
    model = SPAN(scale)
    fast = APEForward(model)
    assert fast.scale == scale and fast.packed.backend == "torch"
    for size in SIZES:
        patches = test_patches(3, *size)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("c_in", [3, CHANNELS])
def test_a_convolution_folds_exactly(c_in):
    module = randomise(Conv3XC(c_in, CHANNELS))
    x = torch.randn(2, c_in, 5, 4, generator=torch.Generator().manual_seed(0))
    weight, bias = fold_span_conv(module, "conv_1")
    assert_pictures_close(conv2d(x, weight.float(), bias.float(), padding=1), module.train()(x), 1e-6)


def test_every_parameter_shows():
    """Guards the first test: each parameter, changed, changes the picture by more than it allows."""
    model, patches = SPAN(), test_patches(2)
    expected = model(patches)
    for path, parameter in model.named_parameters():
        if "eval_conv" not in path:  # made from the others
            kept = parameter.clone()
            parameter.mul_(0.5)
            assert (model(patches) - expected).abs().max() > 2e-4, path
            parameter.copy_(kept)


def test_exits_stand_at_the_end_alone():
    assert [stage.has_exit for stage in to_program(add_exits(SPAN(), every=1)).stages] == [True]
    with pytest.raises(ValueError, match=r"every: .*expected a whole number from 1 to 1"):
        add_exits(SPAN(), every=2)


NEAR_MISSES = {
    "relu": (edit("block_2.act1", nn.ReLU()), "model.block_2.act1: expected an nn.SiLU, got ReLU"),
    "plain-conv": (
        edit("block_3.c2_r", nn.Conv2d(8, 8, 3, padding=1)),
        "model.block_3.c2_r: expected a re-parameterised convolution with sk and conv, got Conv2d",
    ),
    "activated-conv": (edit("conv_2.has_relu", True), "model.conv_2.has_relu: expected False, got True"),
    "padded-branch": (
        edit("conv_2.conv.1", nn.Conv2d(16, 16, 3, padding=1)),
        r"model.conv_2.conv.1: expected an unpadded nn.Conv2d with weights \[16, 16, 3, 3\], got Conv2d",
    ),
    "seventh-block": (edit("block_7", SPAB()), "model.block_7: expected no such submodule"),
    "narrow-cat": (edit("conv_cat", nn.Conv2d(24, 8, 1)), "model.conv_cat: expected in_channels 32, got 24"),
    "no-shuffle": (edit("upsampler.1", nn.ReLU()), "model.upsampler.1: expected an nn.PixelShuffle, got ReLU"),
    "other-forward": (
        lambda m: setattr(m, "forward", lambda x: 2 * SPAN.forward(m, x)),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = SPAN()
    assert_refused(model, change, message)
