"""Networks as other projects write them, rendered literally, against what their state dicts are turned into."""

import pytest
import swinir_layouts
import test_basicsr as basicsr
import test_compact as compact
import test_ecbsr as ecbsr
import test_rcan as rcan
import test_rrdb as rrdb
import test_vdsr as vdsr
import torch
from support import DEVICE, assert_pictures_close, spread_network
from torch import nn

from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet, SRVGGNetCompact, SwinIR
from ape_sr.models.convert import Unsaid, from_state_dict
from ape_sr.models.edsr import RGB_MEAN


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class BasicSRBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


class BasicSREDSR(nn.Module):
    """BasicSR's frame: images in [0, 1], mean taken off and spread to `img_range` inside."""

    def __init__(self, channels: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.conv_first, self.conv_last = conv3x3(3, channels), conv3x3(channels, 3)
        self.conv_after_body = conv3x3(channels, channels)
        self.body = nn.Sequential(*(BasicSRBlock(channels) for _ in range(blocks)))
        self.upsample = nn.Sequential(conv3x3(channels, 9 * channels), nn.PixelShuffle(3))

    def forward(self, x):
        mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
        x = self.conv_first((x - mean) * 255)
        x = self.conv_last(self.upsample(self.conv_after_body(self.body(x)) + x))
        return x / 255 + mean


def test_basicsr_naming():
    torch.manual_seed(1)
    theirs = BasicSREDSR().eval()
    ours = from_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        assert_pictures_close(ours(x), theirs(x), 1e-5)
    assert ours.scale == 3


class Shift(nn.Conv2d):
    def __init__(self, rgb_range: float, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * rgb_range * torch.tensor([0.4488, 0.4371, 0.4040])


class PyTorchBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(True), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x):
        return x + self.body(x).mul(self.res_scale)


class PyTorchEDSR(nn.Module):
    """EDSR-PyTorch's frame at scale 4, images in [0, rgb_range]; with APE's regressor if there are exits."""

    def __init__(self, rgb_range: float, res_scale: float, exits: bool, channels: int = 8, blocks: int = 4) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = Shift(rgb_range, -1), Shift(rgb_range, 1)
        self.head = nn.Sequential(conv3x3(3, channels))
        body = [PyTorchBlock(channels, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv3x3(channels, channels))
        twice = [layer for _ in range(2) for layer in (conv3x3(channels, 4 * channels), nn.PixelShuffle(2))]
        self.tail = nn.Sequential(nn.Sequential(*twice), conv3x3(channels, 3))
        if exits:
            self.regressor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1), nn.Tanh())

    def forward(self, x):
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


@pytest.mark.parametrize("exits", [False, True], ids=["plain", "exits"])
@pytest.mark.parametrize(("rgb_range", "res_scale"), [(1.0, 1.0), (255.0, 0.1)], ids=["small", "published-large"])
def test_edsr_pytorch_naming(rgb_range, res_scale, exits):
    torch.manual_seed(1)
    theirs = PyTorchEDSR(rgb_range, res_scale, exits).eval()
    ours = from_state_dict(theirs.state_dict(), Unsaid(2 if exits else None, res_scale))
    x = rgb_range * torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        assert_pictures_close(ours(x), theirs(x), 1e-6)
        if exits:
            features = torch.rand(2, 8, 5, 5)
            assert torch.equal(ours.regressor(features), theirs.regressor(features))
    assert (ours.rgb_range, ours.scale, ours.has_exits) == (rgb_range, 4, exits)


def test_edsr_pytorch_naming_without_mean_shift():
    model = spread_network(2, 3, 8, None)
    state = {name: value for name, value in model.state_dict().items() if "_mean" not in name}
    model.sub_mean.bias.zero_(), model.add_mean.bias.zero_()
    x = torch.rand(1, 3, 6, 6)
    assert_pictures_close(from_state_dict(state)(x), model(x), 1e-6)


def test_a_regressor_needs_its_interval():
    model = spread_network(2, 4, 8, 2)
    assert from_state_dict(model.state_dict(), Unsaid(exit_interval=2)).exit_interval == 2
    with pytest.raises(ValueError, match="exit_interval: expected the blocks between exits"):
        from_state_dict(model.state_dict())


def change(name, value):
    return lambda state: state.__setitem__(name, value)


FAULTS = {
    "nothing": (lambda state: state.clear(), "expected the keys of ECBSR, .*, got nothing"),
    "missing-block-half": (lambda state: state.pop("body.1.body.2.weight"), r"body.1.body.2.weight: expected a tensor \[8, 8, 3, 3\], got no such key"),
    "missing-closing-conv": (lambda state: state.pop("body.2.weight"), "body.2.weight: expected a tensor"),
    "wrong-shape": (change("body.0.body.0.weight", torch.zeros(8, 8, 5, 5)), r"body.0.body.0.weight: expected \[8, 8, 3, 3\], got \[8, 8, 5, 5\]"),
    "extra-key": (change("body.0.bn.weight", torch.zeros(8)), "body.0.bn.weight: expected no such key"),
    "odd-upsampler": (change("tail.0.0.weight", torch.zeros(40, 8, 3, 3)), "tail.0.0.weight: expected 4 or 9 times as many channels"),
    "no-tensor": (change("head.0.weight", 3), "head.0.weight: expected the weight of a convolution"),
    "odd-mean": (change("sub_mean.bias", torch.tensor([0.1, 0.5, 0.9])), "sub_mean.bias: expected a multiple of"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_state_dicts_are_named(case):
    fault, message = FAULTS[case]
    state = EDSR(2, 2, 8, None).state_dict()
    fault(state)
    with pytest.raises(ValueError, match=message):
        from_state_dict(state)


def basicsr_rcan():
    model = basicsr.Network(basicsr.ResidualGroup, 4, res_scale=1.0)
    model.mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
    return model


def backbone(with_idt: bool = False):
    model = ecbsr.BackboneECBSR(3, 2)
    for block in model.backbone:
        block.with_idt = with_idt
    return model


def authors_ecbsr():
    model = ecbsr.AuthorsECBSR(3, exits=False)
    for block in (*model.head, *model.body):
        block.with_idt = False
    return model


def shifted(model: nn.Module, rgb_range: float = 1.0):
    """`model` with the mean shift that everybody publishes."""
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        setattr(model, name, Shift(rgb_range, sign))
    return model.requires_grad_(False)


def first_esrgan(*factors: int):
    model = rrdb.FirstESRGAN(*factors)
    model.model[-2].negative_slope = 0.2  # the one that is published
    return model


def swinir(upsampler: str, upscale: int, three_convs: bool = False):
    model = swinir_layouts.BasicSR(upsampler, upscale, three_convs=three_convs)
    for layer in model.layers:
        for block in layer.residual_group.blocks:
            block.mlp = block.mlp[0]  # without what is dropped in training
    return model


PUBLISHED = {
    "rcan-edsr-pytorch": (lambda: shifted(rcan.PublicRCAN(), 255.0), RCAN),
    "rcan-basicsr": (basicsr_rcan, RCAN),
    "ecbsr-authors": (authors_ecbsr, ECBSR),
    "ecbsr-basicsr": (backbone, SRVGGNetCompact),
    "rrdb-basicsr-x4": (rrdb.BasicSR, RRDBNet),
    "rrdb-basicsr-x2": (lambda: rrdb.BasicSR(scale=2), RRDBNet),
    "rrdb-basicsr-x1": (lambda: rrdb.BasicSR(scale=1), RRDBNet),
    "rrdb-trunk-x4": (rrdb.Trunk, RRDBNet),
    "rrdb-trunk-x2": (lambda: rrdb.Trunk(2), RRDBNet),
    "rrdb-first-x4": (lambda: first_esrgan(2, 2), RRDBNet),
    "rrdb-first-x2": (lambda: first_esrgan(2), RRDBNet),
    "rrdb-first-x1": (first_esrgan, RRDBNet),
    "compact-x4": (lambda: compact.Compact(4), SRVGGNetCompact),
    "compact-x3": (lambda: compact.Compact(3), SRVGGNetCompact),
    "swinir-classical-x3": (lambda: swinir("pixelshuffle", 3), SwinIR),
    "swinir-lightweight-x2": (lambda: swinir("pixelshuffledirect", 2), SwinIR),
    "swinir-real-x4": (lambda: swinir("nearest+conv", 4), SwinIR),
    "swinir-real-large-x2": (lambda: swinir("nearest+conv", 2, three_convs=True), SwinIR),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    make, network = PUBLISHED[name]
    theirs = make().eval()
    ours = from_state_dict(theirs.state_dict()).to(DEVICE)
    assert type(ours) is network and not ours.training and not ours.has_exits
    rgb_range = 255.0 if name == "rcan-edsr-pytorch" else 1.0
    assert ours.rgb_range == rgb_range
    x = rgb_range * torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        expected = theirs(x)
        assert_pictures_close(ours(x), expected, 1e-5)
    assert ours.scale == expected.shape[3] // 12
    again = type(ours)(**ours.config)  # as a file of ours is read
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.eval().to(DEVICE)(x), ours(x))


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_vdsr_is_told_its_scale(bias):
    theirs = shifted(vdsr.PlainVDSR(), 255.0)
    if bias:
        for layer in theirs.body:
            layer[0].bias = nn.Parameter(torch.randn(len(layer[0].weight)), requires_grad=False)
    with pytest.raises(ValueError, match=r"VDSR found, but scale: expected the upscaling factor \(-s\), .* got None"):
        from_state_dict(theirs.state_dict())
    ours = from_state_dict(theirs.state_dict(), Unsaid(scale=3))
    x = 255 * torch.rand(1, 3, 6, 7)
    assert type(ours) is VDSR and ours.rgb_range == 255
    assert_pictures_close(ours(x), theirs(ours.upsample(x)), 1e-5)


@pytest.mark.parametrize(
    "model",
    [RCAN(2, 4, 1, 8, 4, 2), VDSR(2, 6, 8, 2), ECBSR(2, 4, 8, 2), RRDBNet(4, 4, 8, 4, 2), SwinIR(2, 12, (2, 2), (2, 3), 4, 2.0, 8, 2)],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_regressors_of_every_family(model):
    """State dicts of the APE authors, whose keys ours are."""
    with pytest.raises(ValueError, match="exit_interval: expected the blocks between exits"):
        from_state_dict(model.state_dict(), Unsaid(scale=2))
    ours = from_state_dict(model.state_dict(), Unsaid(exit_interval=2, scale=2))
    assert ours.config == model.config
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        for got, expected in zip(ours.forward_exits(x), model.eval().forward_exits(x), strict=True):
            assert all(map(torch.equal, got, expected))


def keys(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(64, 3, 3, 3) for name in names}


REFUSED = {
    "half-an-rrdb": (keys("conv_first.weight", "body.0.rdb1.conv1.weight"), "RRDBNet found, but conv_first.bias: expected a tensor [64], got no such key"),
    "half-a-compact": ({**keys("body.0.weight"), "body.1.weight": torch.zeros(64)}, "SRVGGNetCompact found, but body.2.weight: expected at least 3 convolutions, got 1"),
    "half-an-old-esrgan": (keys("model.0.weight"), "RRDBNet found, but model.1.sub.0.RDB1.conv1.0.weight: expected the first dense block"),
    "compact-with-relu": (keys("body.0.weight", "body.2.weight", "body.4.weight"), "SRVGGNetCompact found, but body.1.weight: expected a tensor [64], got no such key"),
    "swinir-for-noise": (swinir("", 1).state_dict(), "SwinIR found, but upsample.0.weight: expected the weight of a convolution"),
    "grey-rrdb": ({**rrdb.BasicSR().state_dict(), "conv_first.weight": torch.zeros(8, 1, 3, 3)}, "RRDBNet found, but conv_first.weight: expected 3, 12 or 48 channels in, got 1"),
    "hat": (keys("conv_first.weight", "layers.0.residual_group.overlap_attn.qkv.weight"), "expected the keys of ECBSR, RRDBNet, SwinIR, RCAN, VDSR, EDSR, SRVGGNetCompact, got HAT"),
    "msrresnet": (keys("conv_first.weight", "body.0.conv1.weight", "upconv1.weight"), "got MSRResNet"),
    "unknown": (keys("encoder.weight"), "got the key encoder.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_what_was_found(case):
    state, message = REFUSED[case]
    with pytest.raises(ValueError) as raised:
        from_state_dict(state)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_res_scale_is_an_edsrs():
    with pytest.raises(ValueError, match=r"res_scale: expected with an EDSR alone, got 0\.1 with SRVGGNetCompact"):
        from_state_dict(compact.Compact(2).state_dict(), Unsaid(res_scale=0.1))


def test_what_others_leave_in_a_state_dict():
    """Buffers that ours compute."""
    theirs = swinir("pixelshuffle", 2)
    state = theirs.state_dict()
    path = "layers.0.residual_group.blocks.1"
    state |= {f"{path}.attn_mask": torch.zeros(4, 16, 16), f"{path}.attn.relative_position_index": torch.zeros(16, 16)}
    x = torch.rand(1, 3, 8, 8)
    assert_pictures_close(from_state_dict(state)(x), theirs(x), 1e-5)
