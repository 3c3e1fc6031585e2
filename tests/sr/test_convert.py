"""Networks as other projects write them, rendered literally, against what their state dicts are turned into."""

import pytest
import torch
from support import assert_pictures_close, spread_network
from torch import nn

from ape_sr.models import EDSR
from ape_sr.models.convert import from_state_dict


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
    ours = from_state_dict(theirs.state_dict(), exit_interval=2 if exits else None, res_scale=res_scale)
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
    assert from_state_dict(model.state_dict(), exit_interval=2).exit_interval == 2
    with pytest.raises(ValueError, match="exit_interval: expected the blocks between exits"):
        from_state_dict(model.state_dict())


def change(name, value):
    return lambda state: state.__setitem__(name, value)


FAULTS = {
    "unknown-naming": (lambda state: state.clear(), "state: expected the key head.0.weight"),
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
