"""SRResNet and MSRResNet: every layout equals its own forward; near misses are refused by name."""

import pytest
import torch
from families import edit, randomise, remove
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import interpolate, pixel_shuffle, relu

from ape_kernels import APEForward, NotRecognised, add_exits, to_program

SIZES = [(1, 1), (3, 29), (8, 6)]


def conv(in_channels: int = 8, out_channels: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options)


class Block(nn.Module):
    """BasicSR's has its activation as a module, ClassSR's as a function."""

    def __init__(self, module: bool = True) -> None:
        super().__init__()
        self.res_scale = 0.7
        self.conv1, self.conv2 = conv(), conv()
        if module:
            self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.conv1(x)
        return x + self.conv2(self.relu(hidden) if hasattr(self, "relu") else relu(hidden)) * self.res_scale


class MSRResNet(nn.Module):
    """BasicSR's class, and ClassSR's by other names."""

    def __init__(self, upscale: int = 4, body: str = "body", high: str = "conv_hr") -> None:
        super().__init__()
        self.upscale, self.names = upscale, (body, high)
        self.conv_first = conv(3)
        setattr(self, body, nn.Sequential(*(Block(body == "body") for _ in range(2))))
        factor = 2 if upscale == 4 else upscale
        self.upconv1, self.pixel_shuffle = conv(8, 8 * factor**2), nn.PixelShuffle(factor)
        if upscale == 4:
            self.upconv2 = conv(8, 32)
        setattr(self, high, conv())
        self.conv_last, self.lrelu = conv(8, 3), nn.LeakyReLU(negative_slope=0.1, inplace=True)
        randomise(self, gain=1.5).to(DEVICE)

    def forward(self, x):
        body, high = (getattr(self, name) for name in self.names)
        out = body(self.lrelu(self.conv_first(x)))
        out = self.lrelu(self.pixel_shuffle(self.upconv1(out)))
        if self.upscale == 4:
            out = self.lrelu(self.pixel_shuffle(self.upconv2(out)))
        out = self.conv_last(self.lrelu(high(out)))
        out += interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return out


class Pack(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.scale_factor, self.upsample_conv = factor, conv(8, 8 * factor**2)

    def forward(self, x):
        return pixel_shuffle(self.upsample_conv(x), self.scale_factor)


class MagicMSRResNet(nn.Module):
    """mmagic's class: no activation after the shuffles."""

    def __init__(self, upscale_factor: int = 4) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor
        self.conv_first, self.trunk_net = conv(3), nn.Sequential(Block(), Block())
        self.upsample1 = Pack(2 if upscale_factor == 4 else upscale_factor)
        if upscale_factor == 4:
            self.upsample2 = Pack(2)
        self.conv_hr, self.conv_last = conv(), conv(8, 3)
        self.img_upsampler = nn.Upsample(scale_factor=upscale_factor, mode="bilinear", align_corners=False)
        self.lrelu = nn.LeakyReLU(negative_slope=0.1, inplace=True)
        randomise(self, gain=1.5).to(DEVICE)

    def forward(self, x):
        out = self.upsample1(self.trunk_net(self.lrelu(self.conv_first(x))))
        if self.upscale_factor == 4:
            out = self.upsample2(out)
        return self.conv_last(self.lrelu(self.conv_hr(out))) + self.img_upsampler(x)


class NormBlock(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(bias=False), nn.BatchNorm2d(8), act
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.add(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))), x)


class SRResNet(nn.Module):
    """twtygqyy's class; with `prelu` the paper's activation."""

    def __init__(self, prelu: bool = False) -> None:
        super().__init__()
        act = (lambda: nn.PReLU(8)) if prelu else (lambda: nn.LeakyReLU(0.2, inplace=True))
        self.conv_input, self.relu = conv(3, 8, 9, bias=False), act()
        self.residual = nn.Sequential(NormBlock(act()), NormBlock(act()))
        self.conv_mid, self.bn_mid = conv(bias=False), nn.BatchNorm2d(8)
        self.upscale4x = nn.Sequential(
            conv(8, 32, bias=False), nn.PixelShuffle(2), act(), conv(8, 32, bias=False), nn.PixelShuffle(2), act()
        )
        self.conv_output = conv(8, 3, 9, bias=False)
        randomise(self, gain=1.5)
        generator = torch.Generator().manual_seed(1)
        for norm in [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]:
            norm.running_mean.copy_(0.3 * torch.randn(8, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(8, generator=generator))
            norm.weight.add_(1)
        self.to(DEVICE)

    def forward(self, x):
        out = self.relu(self.conv_input(x))
        residual = out
        out = self.bn_mid(self.conv_mid(self.residual(out)))
        return self.conv_output(self.upscale4x(torch.add(out, residual)))


LAYOUTS = {
    "basicsr-x4": (MSRResNet, 4),
    "basicsr-x3": (lambda: MSRResNet(3), 3),
    "basicsr-x2": (lambda: MSRResNet(2), 2),
    "classsr-x4": (lambda: MSRResNet(4, "recon_trunk", "HRconv"), 4),
    "mmagic-x4": (MagicMSRResNet, 4),
    "mmagic-x3": (lambda: MagicMSRResNet(3), 3),
    "norm": (SRResNet, 4),
    "norm-prelu": (lambda: SRResNet(prelu=True), 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_its_forward(name):
    make, scale = LAYOUTS[name]
    model = make()
    fast = APEForward(model)
    assert fast.scale == scale and fast.packed.backend == "torch"
    for size in SIZES:
        patches = test_patches(3, *size)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_shows(name):
    """Guards the test above: each parameter, changed, changes the picture by more than it allows."""
    model, patches = LAYOUTS[name][0](), test_patches(2)
    expected = model(patches)
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if path.endswith("num_batches_tracked"):
            continue
        kept = tensor.clone()
        tensor.mul_(0.5)
        assert (model(patches) - expected).abs().max() > 1e-3, path
        tensor.copy_(kept)


def test_statistics_that_change_are_folded_anew():
    model, patches = SRResNet(), test_patches(2)
    fast = APEForward(model)
    model.bn_mid.running_mean.add_(0.5)
    assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


def test_exits_can_be_added():
    model = add_exits(MSRResNet(), every=1)
    assert [stage.has_exit for stage in to_program(model).stages] == [True, True]


NEAR_MISSES = {
    "kernel-5-block": (MSRResNet, edit("body.1.conv1", conv(kernel=5)), "model.body.1.conv1: expected kernel_size"),
    "norm-in-block": (MSRResNet, edit("body.1.bn1", nn.BatchNorm2d(8)), "model.body.1.bn1: expected no such submodule"),
    "gelu": (MSRResNet, edit("lrelu", nn.GELU()), "model.lrelu: expected an nn.ReLU, .*, got GELU"),
    "no-blocks": (MSRResNet, edit("body", nn.Sequential()), "model.body: expected residual blocks, got none"),
    "narrow-upconv": (
        MSRResNet,
        edit("upconv1", conv(8, 24)),
        "model.upconv1: expected out_channels 4 or 9 times 8, got 24",
    ),
    "no-high": (
        MSRResNet,
        remove("conv_hr"),
        r"model.conv_hr: expected a submodule beside .*nearest family: SRResNet",
    ),
    "third-upconv": (MSRResNet, edit("upconv3", conv(8, 32)), "model.upconv3: expected no such submodule"),
    "group-norm": (
        SRResNet,
        edit("residual.0.bn2", nn.GroupNorm(2, 8)),
        "model.residual.0.bn2: expected an nn.BatchNorm2d with running statistics, got GroupNorm",
    ),
    "no-statistics": (
        SRResNet,
        edit("bn_mid", nn.BatchNorm2d(8, track_running_stats=False)),
        "model.bn_mid: expected an nn.BatchNorm2d with running statistics, got BatchNorm2d",
    ),
    "no-activation-at-the-end": (
        SRResNet,
        lambda m: m.upscale4x.pop(5),
        "model.upscale4x: expected threes of conv, PixelShuffle and activation, got 5 layers",
    ),
    "bicubic-base": (
        MagicMSRResNet,
        edit("img_upsampler", nn.Upsample(scale_factor=4, mode="bicubic")),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    make, change, message = NEAR_MISSES[case]
    model = make()
    change(model)
    with pytest.raises(NotRecognised, match=message):
        APEForward(model.to(DEVICE))
