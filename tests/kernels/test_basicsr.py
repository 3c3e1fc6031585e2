"""EDSR and RCAN in BasicSR's layout: unmodified networks dropped in; near misses refused by name."""

import pytest
import torch
from families import assert_refused, edit
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import pixel_shuffle

from ape_kernels import APEForward

SIZES = [(1, 1), (3, 29), (12, 7)]


def conv(kernel: int = 3, in_channels: int = 16, out_channels: int = 16, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options)


class ResidualBlockNoBN(nn.Module):
    def __init__(self, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2, self.relu = conv(), conv(), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.conv2(self.relu(self.conv1(x)))
        return x + out * self.res_scale


class ChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(1, 16, 4), nn.ReLU(inplace=True), conv(1, 4, 16), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.attention(x)


class RCAB(nn.Module):
    def __init__(self, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.rcab = nn.Sequential(conv(), nn.ReLU(True), conv(), ChannelAttention())

    def forward(self, x):
        return self.rcab(x) * self.res_scale + x


class ResidualGroup(nn.Module):
    def __init__(self, res_scale: float, blocks: int = 2) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(*(RCAB(res_scale) for _ in range(blocks)))
        self.conv = conv()

    def forward(self, x):
        return self.conv(self.residual_group(x)) + x


class Upsample(nn.Sequential):
    def __init__(self, scale: int) -> None:
        factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
        super().__init__(*(m for f in factors for m in (conv(3, 16, 16 * f * f), nn.PixelShuffle(f))))


class Network(nn.Module):
    """The frame that the two networks have in common; the mean follows the input as it does upstream."""

    def __init__(self, kind: type[nn.Module], upscale: int = 2, res_scale: float = 0.8, img_range: float = 255.0):
        super().__init__()
        torch.manual_seed(0)
        self.img_range, self.mean = img_range, torch.tensor([0.45, 0.3, 0.6]).view(1, 3, 1, 1)
        self.conv_first = conv(3, 3)
        self.body = nn.Sequential(*(kind(res_scale) for _ in range(3)))
        self.conv_after_body = conv()
        self.upsample = Upsample(upscale)
        self.conv_last = conv(3, 16, 3)
        for name, parameter in self.eval().requires_grad_(False).named_parameters():
            if parameter.shape[2:] == (1, 1):
                parameter.copy_(2 * torch.randn_like(parameter) / (img_range if ".attention.1." in name else 1))
            elif parameter.ndim == 4:
                parameter.mul_(2)
            else:  # biases that show beside features of the image's range, zero padding inside the tail with them
                parameter.uniform_(-0.3, 0.3).mul_(1 if ".attention." in name else img_range)
        self.to(DEVICE)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        x = self.conv_first((x - self.mean) * self.img_range)
        res = self.conv_after_body(self.body(x))
        res += x
        return self.conv_last(self.upsample(res)) / self.img_range + self.mean


@pytest.mark.parametrize("kind", [ResidualBlockNoBN, ResidualGroup])
@pytest.mark.parametrize("upscale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_dropped_in(backend, kind, upscale):
    model = Network(kind, upscale)
    fast = APEForward(model, backend=backend)
    assert fast.scale == upscale
    for size in SIZES:
        patches = test_patches(3, *size)
        sr, exit_index, capacity = fast.forward_patches(patches)
        assert_pictures_close(sr, model(patches))
        assert (exit_index == 0).all()
        assert capacity.isnan().all()


class PixelShufflePack(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.scale_factor, self.upsample_conv = factor, conv(3, 16, 16 * factor**2)

    def forward(self, x):
        return pixel_shuffle(self.upsample_conv(x), self.scale_factor)


class Magic(Network):
    """mmagic's EDSRNet: a spread per colour for the range, and pairs of the upsampler in a module of their own."""

    def __init__(self, *factors: int) -> None:
        super().__init__(ResidualBlockNoBN)
        del self.img_range
        self.std = torch.tensor([0.5, 0.25, 0.8]).view(1, 3, 1, 1)
        self.upsample = nn.Sequential(*map(PixelShufflePack, factors))
        self.requires_grad_(False).to(DEVICE)

    def forward(self, x):
        self.mean, self.std = self.mean.to(x), self.std.to(x)
        x = self.conv_first((x - self.mean) / self.std)
        res = self.conv_after_body(self.body(x))
        res += x
        return self.conv_last(self.upsample(res)) * self.std + self.mean


@pytest.mark.parametrize("factors", [(2,), (3,), (2, 2)], ids=str)
def test_mmagics_class(factors, backend):
    model, patches = Magic(*factors), test_patches(3, 5, 8)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("std", 1.0), r"model.std: expected a tensor \[1, 3, 1, 1\], got float"),
        (edit("upsample.0.scale_factor", 2.5), "model.upsample.0.scale_factor: expected a whole number of at least 1"),
        (edit("upsample.0.act", nn.ReLU()), "model.upsample.0.act: expected no such submodule"),
        (edit("upsample.0.upsample_conv", conv(5, 16, 64)), r"model.upsample.0: expected kernel_size"),
    ],
)
def test_near_misses_of_mmagics_class(change, message):
    model = Magic(2)
    assert_refused(model, change, message)


@pytest.mark.parametrize("kind", [ResidualBlockNoBN, ResidualGroup])
def test_range_and_residual_scale_of_one(kind):
    model, patches = Network(kind, res_scale=1, img_range=1.0), test_patches(2)
    assert_pictures_close(APEForward(model, backend="torch").forward_patches(patches)[0], model(patches))


def test_wrapping_leaves_the_random_numbers_alone():
    model = Network(ResidualBlockNoBN)
    state = torch.get_rng_state()
    APEForward(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_shows():
    """Guards the drop-in tests: each parameter, set to zero, changes the picture by more than they allow."""
    patches = test_patches(2)
    for kind in (ResidualBlockNoBN, ResidualGroup):
        model = Network(kind)
        expected = model(patches)
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.zero_()
            span = float(expected.max() - expected.min())
            assert (model(patches) - expected).abs().max() > 1e-3 * span, name
            parameter.copy_(kept)


class ScaledSkip(ResidualBlockNoBN):
    """A block by its parts, something else by its forward."""

    def forward(self, x):
        return super().forward(x) * 0.9


FRAME_NEAR_MISSES = {
    "kernel-5-first-conv": (edit("conv_first", conv(5, 3)), "model.conv_first: expected kernel_size"),
    "empty-body": (edit("body", nn.Sequential()), "model.body: expected residual blocks or groups, got none"),
    "body-in-a-list": (lambda m: setattr(m, "body", nn.ModuleList(m.body)), "model.body: expected an nn.Sequential"),
    "wider-conv-after-body": (
        edit("conv_after_body", conv(3, 16, 24)),
        "model.conv_after_body: expected out_channels 16, got 24",
    ),
    "relu-in-upsampler": (
        lambda m: m.upsample.append(nn.ReLU()),
        "model.upsample: expected pairs of conv and PixelShuffle",
    ),
    "conv-before-upsampler": (
        edit("conv_before_upsample", conv()),
        "model.conv_before_upsample: expected no such submodule",
    ),
    "grey-picture": (edit("conv_last", conv(3, 16, 1)), "model.conv_last: expected out_channels 3, got 1"),
    "no-range": (lambda m: delattr(m, "img_range"), "model.img_range: expected a number, got NoneType"),
    "range-zero": (edit("img_range", 0.0), "model.img_range: expected a number above 0, got 0.0"),
    "mean-of-one-color": (
        edit("mean", torch.zeros(1, 1, 1, 1)),
        r"model.mean: expected a tensor \[1, 3, 1, 1\], got \[1, 1, 1, 1\]",
    ),
    "mean-a-number": (edit("mean", 0.5), r"model.mean: expected a tensor \[1, 3, 1, 1\], got float"),
}
EDSR_NEAR_MISSES = {
    "group-among-blocks": (
        edit("body.1", ResidualGroup(1.0)),
        "model.body.1: expected a residual block with conv1, relu and conv2, got ResidualGroup",
    ),
    "kernel-1-block": (edit("body.1.conv1", conv(1)), "model.body.1.conv1: expected kernel_size"),
    "strided-block": (
        edit("body.1.conv2", nn.Conv2d(16, 16, 3, 2, 1)),
        r"model.body.1.conv2: expected stride \(1, 1\), got \(2, 2\)",
    ),
    "leaky-block": (edit("body.2.relu", nn.LeakyReLU()), "model.body.2.relu: expected an nn.ReLU, got LeakyReLU"),
    "norm-in-block": (edit("body.2.norm", nn.BatchNorm2d(16)), "model.body.2.norm: expected no such submodule"),
    "tensor-res-scale": (
        edit("body.0.res_scale", torch.tensor(0.5)),
        "model.body.0.res_scale: expected a number, got Tensor",
    ),
    "block-with-own-forward": (
        edit("body.1", ScaledSkip(0.8)),
        "model: its forward does something else than its layers say",
    ),
}
GATE = "body.1.residual_group.0.rcab.3"
RCAN_NEAR_MISSES = {
    "block-among-groups": (
        edit("body.1", ResidualBlockNoBN(1.0)),
        "model.body.1: expected a residual group with residual_group and conv, got ResidualBlockNoBN",
    ),
    "group-without-blocks": (
        edit("body.1", ResidualGroup(1.0, 0)),
        "model.body.1.residual_group: expected attention blocks, got none",
    ),
    "kernel-1-conv-of-group": (edit("body.2.conv", conv(1)), "model.body.2.conv: expected kernel_size"),
    "attention-beside-group": (edit("body.2.gate", conv(1)), "model.body.2.gate: expected no such submodule"),
    "conv-among-blocks": (
        edit("body.1.residual_group.0", conv()),
        r"model.body.1.residual_group.0: expected a block with .rcab = \[conv, ReLU, conv, attention\], got Conv2d",
    ),
    "block-without-attention": (
        lambda m: m.body[1].residual_group[0].rcab.pop(3),
        "model.body.1.residual_group.0.rcab: expected 4 layers, got 3",
    ),
    "sigmoid-for-attention": (
        edit(GATE, nn.Sigmoid()),
        f"model.{GATE}: expected a channel attention with .attention, got Sigmoid",
    ),
    "max-pooled-attention": (
        edit(f"{GATE}.attention.0", nn.AdaptiveMaxPool2d(1)),
        f"model.{GATE}.attention.0: expected an nn.AdaptiveAvgPool2d, got AdaptiveMaxPool2d",
    ),
    "swish-in-gate": (
        edit(f"{GATE}.attention.2", nn.SiLU()),
        f"model.{GATE}.attention.2: expected an nn.ReLU, got SiLU",
    ),
    "narrower-expand": (
        edit(f"{GATE}.attention.3", conv(1, 4, 1)),
        f"model.{GATE}.attention.3: expected out_channels 16, got 1",
    ),
    "gate-without-sigmoid": (
        lambda m: m.get_submodule(f"{GATE}.attention").pop(4),
        f"model.{GATE}.attention: expected 5 layers, got 4",
    ),
}
NEAR_MISSES = {
    **{f"edsr-{name}": (ResidualBlockNoBN, *case) for name, case in (FRAME_NEAR_MISSES | EDSR_NEAR_MISSES).items()},
    **{f"rcan-{name}": (ResidualGroup, *case) for name, case in RCAN_NEAR_MISSES.items()},
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    kind, change, message = NEAR_MISSES[case]
    model = Network(kind)
    assert_refused(model, change, message)
