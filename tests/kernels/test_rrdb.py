"""RRDBNet: every layout equals its own forward at every exit; near misses are refused by name."""

import pytest
import torch
from families import (
    assert_equals_its_forward,
    assert_leaves_as_predicted,
    assert_refused,
    edit,
    randomise,
    remove,
    spread_regressor,
)
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import interpolate, leaky_relu, pixel_unshuffle

from ape_kernels import APEForward, NotRecognised
from ape_sr.models import RRDBNet

SIZES = [(1, 1), (3, 29), (8, 6)]


def conv(in_channels: int = 8, out_channels: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=options.pop("padding", kernel // 2), **options)


def network(blocks: int = 5, exit_interval: int | None = 2) -> RRDBNet:
    model = randomise(RRDBNet(4, blocks, 8, 4, exit_interval), gain=1.7)
    if exit_interval is not None:
        patches = test_patches(64, seed=2).cpu()
        spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


class Dense(nn.Module):
    def __init__(self, slope: float = 0.2) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (conv(8 + 4 * i, 4) for i in range(4))
        self.conv5 = conv(24, 8)
        self.lrelu = nn.LeakyReLU(slope, inplace=True)

    def forward(self, x):
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class Block(nn.Module):
    def __init__(self, outer_scale: float = 0.2) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = Dense(), Dense(), Dense()
        self.outer_scale = outer_scale

    def forward(self, x):
        return self.rdb3(self.rdb2(self.rdb1(x))) * self.outer_scale + x


class AuthorsRRDB(nn.Module):
    """The authors' class: a forward with two modes, the last block always an exit.

    Where the interval does not divide the blocks, test mode calls it by the number of the exit before.
    """

    def __init__(self, test_only: bool, blocks: int = 4) -> None:
        super().__init__()
        ours = network(blocks, 2)
        for name, child in ours.named_children():
            self.add_module(name, child)
        self.exit_interval, self.exit_threshold, self.test_only = 2, 0.5, test_only

    def picture(self, x, skip, feat):
        x = skip + self.body[-1](feat)
        for layer in (self.tail.conv_up1, self.tail.conv_up2):
            x = self.tail.lrelu(layer(interpolate(x, scale_factor=2, mode="nearest")))
        return self.tail.conv_last(self.tail.lrelu(self.tail.conv_hr(x)))

    def is_exit(self, blocks):
        return blocks % self.exit_interval == 0 or blocks == len(self.body) - 1

    def at_exits(self, x):
        skip, pictures, predictions = self.head(x), [], []
        feat = skip
        for i, block in enumerate(self.body[:-1], start=1):
            feat = block(feat)
            if self.is_exit(i):
                pictures.append(self.picture(x, skip, feat))
                predictions.append(self.regressor(feat))
        return pictures, predictions

    def forward(self, x):
        pictures, predictions = self.at_exits(x)
        if not self.test_only:
            return pictures, predictions
        first = (torch.cat(predictions, 1) >= self.exit_threshold).int()
        taken = first.argmax(1)
        left = first.any(1)
        sr = torch.stack(pictures)[torch.where(left, taken, len(pictures) - 1), torch.arange(len(x))]
        numbers = torch.tensor([i // self.exit_interval - 1 for i in range(1, len(self.body)) if self.is_exit(i)])
        return sr, torch.where(left, numbers[taken], -1).float(), predictions[-1]


class BasicSR(nn.Module):
    def __init__(self, blocks: int = 2, scale: int = 4, outer_scale: float = 0.2) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = conv(3 * (4 // scale) ** 2, 8)
        self.body = nn.Sequential(*[Block(outer_scale) for _ in range(blocks)])
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = conv(), conv(), conv(), conv()
        self.conv_last = conv(8, 3)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x):
        if self.scale < 4:
            x = pixel_unshuffle(x, 4 // self.scale)
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = self.lrelu(self.conv_up1(interpolate(feat, scale_factor=2, mode="nearest")))
        feat = self.lrelu(self.conv_up2(interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


class TrunkBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = Dense(), Dense(), Dense()

    def forward(self, x):
        return self.RDB3(self.RDB2(self.RDB1(x))) * 0.2 + x


class Trunk(nn.Module):
    """ESRGAN's second class, KAIR's and BSRGAN's, which has one doubling at scale 2."""

    def __init__(self, sf: int = 4) -> None:
        super().__init__()
        self.sf = sf
        self.conv_first = conv(3)
        self.RRDB_trunk = nn.Sequential(TrunkBlock(), TrunkBlock())
        self.trunk_conv, self.upconv1 = conv(), conv()
        if sf == 4:
            self.upconv2 = conv()
        self.HRconv, self.conv_last, self.lrelu = conv(), conv(8, 3), nn.LeakyReLU(0.2, inplace=True)
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x):
        fea = self.conv_first(x)
        fea = fea + self.trunk_conv(self.RRDB_trunk(fea))
        fea = self.lrelu(self.upconv1(interpolate(fea, scale_factor=2, mode="nearest")))
        if self.sf == 4:
            fea = self.lrelu(self.upconv2(interpolate(fea, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.HRconv(fea)))


class Magic(BasicSR):
    """mmagic's class, which keeps its scale elsewhere."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__(scale=upscale_factor)
        self.upscale_factor = upscale_factor
        del self.scale

    def forward(self, x):
        feat = pixel_unshuffle(x, 4 // self.upscale_factor)
        feat = self.conv_first(feat)
        feat = feat + self.conv_body(self.body(feat))
        for layer in (self.conv_up1, self.conv_up2):
            feat = self.lrelu(layer(interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


class FirstDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i in range(4):
            self.add_module(f"conv{i + 1}", nn.Sequential(conv(8 + 4 * i, 4), nn.LeakyReLU(0.2, True)))
        self.conv5 = nn.Sequential(conv(24, 8))

    def forward(self, x):
        x1 = self.conv1(x)
        x2 = self.conv2(torch.cat((x, x1), 1))
        x3 = self.conv3(torch.cat((x, x1, x2), 1))
        x4 = self.conv4(torch.cat((x, x1, x2, x3), 1))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)).mul(0.2) + x


class FirstBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = FirstDense(), FirstDense(), FirstDense()

    def forward(self, x):
        return self.RDB3(self.RDB2(self.RDB1(x))).mul(0.2) + x


class Shortcut(nn.Module):
    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x):
        return x + self.sub(x)


class FirstESRGAN(nn.Module):
    def __init__(self, *factors: int) -> None:
        super().__init__()
        up = [
            m for f in factors for m in (nn.Upsample(scale_factor=f, mode="nearest"), conv(), nn.LeakyReLU(0.2, True))
        ]
        body = Shortcut(nn.Sequential(FirstBlock(), FirstBlock(), conv()))
        self.model = nn.Sequential(conv(3), body, *up, conv(), nn.LeakyReLU(0.1, True), conv(8, 3))
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x):
        return self.model(x)


def test_every_exit_equals_the_forward(backend):
    model = network()
    assert len(model.forward_exits(test_patches(1))[0]) == 3, "after blocks 2, 4 and the last"
    assert_equals_its_forward(model, model.forward_exits, backend, SIZES)


def test_patches_leave_as_predicted(backend):
    model = network()
    assert_leaves_as_predicted(model, model.forward_exits, backend, test_patches(24))


def test_every_part_of_the_network_shows():
    """Guards the other tests: a part that hardly matters could be wrong in the program unnoticed."""
    model, patches = network(), test_patches(2)
    exact = model(patches)
    for name, parameter in model.named_parameters():
        if name.startswith("regressor"):
            continue
        kept = parameter.clone()
        parameter.mul_(0.9)
        assert (model(patches) - exact).abs().max() > 1e-3, name
        parameter.copy_(kept)


def test_without_exits(backend):
    model, patches = network(2, None), test_patches(3, 5, 7)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_the_authors_class(test_only, backend):
    model = AuthorsRRDB(test_only).eval()
    assert_equals_its_forward(model, model.at_exits, backend, [(5, 4)])
    fast, patches = APEForward(model, backend=backend), test_patches(12)
    assert fast.threshold == 0.5
    model.test_only = True
    sr, exit_index, _ = model(patches)
    got, got_index, _ = fast.forward_patches(patches)
    assert torch.equal(got_index, torch.where(exit_index < 0, 1, exit_index.long()))
    assert_pictures_close(got, sr)


def test_the_authors_last_exit_goes_by_the_number_before():
    """A network is recognised wherever the patch that it is tried on leaves."""
    model, patches = AuthorsRRDB(test_only=True, blocks=5).eval(), test_patches(12)
    assert {0.0, 1.0} <= set(model(patches)[1].tolist())
    for model.exit_threshold in torch.linspace(0, 1, 16).tolist():
        assert len(APEForward(model).program.stages) == 3


@pytest.mark.parametrize(
    "model",
    [
        BasicSR,
        Trunk,
        lambda: Trunk(2),
        lambda: FirstESRGAN(2, 2),
        lambda: FirstESRGAN(3),
        lambda: FirstESRGAN(2),
        lambda: FirstESRGAN(),
    ],
    ids=["basicsr-x4", "trunk-x4", "trunk-x2", "first-x4", "first-x3", "first-x2", "first-x1"],
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_public_layouts(model, size, backend):
    model, patches = model(), test_patches(2, *size)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_fold_is_read_off_the_channels(scale, backend):
    model, patches = Magic(scale), test_patches(2, 8, 12)
    fast = APEForward(model, backend=backend)
    assert fast.scale == scale
    assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize(
    "options", [dict(scale=2), dict(scale=8), dict(scale=2, fold=2), dict(scale=1, fold=4)], ids=str
)
def test_other_scales_of_ours(options, backend):
    model = randomise(RRDBNet(n_resblocks=2, n_feats=8, n_growth=4, exit_interval=1, **options), gain=1.7).to(DEVICE)
    assert_equals_its_forward(model, model.forward_exits, backend, [(4, 8)])


def test_slopes_are_read_off_the_modules(backend):
    model, patches = BasicSR(), test_patches(2, 6, 5)
    model.body[0].rdb2.lrelu.negative_slope, model.lrelu.negative_slope = 0.05, 0.7
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_convolutions_without_bias(backend):
    model, patches = BasicSR(), test_patches(2, 6, 5)
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        layer.bias = None
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


class ReluTail(nn.Module):
    def forward(self, x):
        return leaky_relu(x, 0.2)


NEAR_MISSES = {
    "kernel-5-first": (edit("conv_first", conv(3, 8, 5)), "model.conv_first: expected kernel_size"),
    "reflecting-first": (
        edit("conv_first", conv(3, 8, padding_mode="reflect")),
        "model.conv_first: expected padding_mode zeros, got reflect",
    ),
    "relu-in-dense": (
        edit("body.1.rdb2.lrelu", nn.ReLU()),
        "model.body.1.rdb2.lrelu: expected an nn.LeakyReLU, got ReLU",
    ),
    "prelu-in-tail": (edit("lrelu", nn.PReLU()), "model.lrelu: expected an nn.LeakyReLU, got PReLU"),
    "own-activation": (edit("lrelu", ReluTail()), "model.lrelu: expected an nn.LeakyReLU, got ReluTail"),
    "two-dense-blocks": (remove("body.0.rdb3"), "model.body.0: expected three dense blocks"),
    "four-dense-blocks": (edit("body.0.rdb4", Dense()), "model.body.0.rdb4: expected no such submodule"),
    "wrong-growth": (
        edit("body.1.rdb3.conv4", conv(20, 6)),
        "model.body.1.rdb3.conv4: expected out_channels 4, got 6",
    ),
    "not-dense": (edit("body.1.rdb1.conv3", conv(8, 4)), "model.body.1.rdb1.conv3: expected in_channels 16, got 8"),
    "grouped": (edit("body.1.rdb1.conv3", conv(16, 4, groups=4)), "model.body.1.rdb1.conv3: expected groups 1, got 4"),
    "missing-conv": (remove("body.1.rdb1.conv5"), "model.body.1.rdb1.conv5: expected an nn.Conv2d 3x3, got None"),
    "shortcut-conv": (edit("body.0.rdb1.conv1x1", conv(8, 4, 1)), "model.body.0.rdb1.conv1x1: expected no such"),
    "conv-among-blocks": (edit("body.1", conv()), "model.body.1: expected three dense blocks"),
    "no-blocks": (edit("body", nn.Sequential()), "model.body: expected residual-in-residual dense blocks, got none"),
    "third-doubling": (edit("conv_up3", conv()), "model.conv_up3: expected no such submodule"),
    "one-doubling": (remove("conv_up2"), "model.conv_up2: expected an nn.Conv2d 3x3, got None"),
    "no-body-end-conv": (remove("conv_body"), "model.conv_body: expected an nn.Conv2d 3x3, got None"),
    "wider-hr-conv": (edit("conv_hr", conv(8, 12)), "model.conv_hr: expected out_channels 8, got 12"),
    "extra-submodule": (edit("refine", conv()), "model.refine: expected no such submodule"),
    "other-inner-forward": (edit("body.1", Block(outer_scale=0.3)), "its forward does something else"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = BasicSR()
    change(model)
    randomise(model, gain=1.7)
    with pytest.raises(NotRecognised, match=message):
        APEForward(model)


FIRST_NEAR_MISSES = {
    "bilinear": (
        edit("model.2", nn.Upsample(scale_factor=2, mode="bilinear")),
        "model.model.2: expected an nn.Upsample of mode nearest, got bilinear",
    ),
    "relu-in-dense": (
        edit("model.1.sub.0.RDB2.conv3.1", nn.ReLU()),
        "model.model.1.sub.0.RDB2.conv3.1: expected an nn.LeakyReLU, got ReLU",
    ),
    "norm-in-dense": (
        edit("model.1.sub.0.RDB2.conv3", nn.Sequential(conv(16, 4), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))),
        "model.model.1.sub.0.RDB2.conv3: expected 2 layers, got 3",
    ),
    "activation-after-conv5": (
        edit("model.1.sub.1.RDB3.conv5", nn.Sequential(conv(24, 8), nn.LeakyReLU(0.2))),
        "model.model.1.sub.1.RDB3.conv5: expected 1 layers, got 2",
    ),
    "pixel-shuffle": (
        edit("model.2", nn.PixelShuffle(2)),
        "model.model.2: expected an nn.Upsample of mode nearest, got PixelShuffle",
    ),
    "extra-layer": (lambda m: m.model.append(nn.Sigmoid()), "model.model: expected threes of Upsample"),
    "half-a-square": (edit("shuffle_factor", 0.5), "model.shuffle_factor: expected a whole number of at least 1"),
}


@pytest.mark.parametrize("case", FIRST_NEAR_MISSES)
def test_near_misses_of_the_first_layout(case):
    change, message = FIRST_NEAR_MISSES[case]
    model = FirstESRGAN(2)
    assert_refused(model, change, message)


def test_a_regressor_that_is_none():
    model = network()
    model.regressor[3] = nn.Sigmoid()
    with pytest.raises(NotRecognised, match=r"model.regressor.3: expected an nn.Tanh, got Sigmoid"):
        APEForward(model)


@pytest.mark.parametrize("options", [{"scale": 3}, {"fold": 3}, {"n_resblocks": 4, "exit_interval": 5}], ids=str)
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]}: expected"):
        RRDBNet(**{"n_resblocks": 1, "n_feats": 4, "n_growth": 2, "exit_interval": None, **options})
