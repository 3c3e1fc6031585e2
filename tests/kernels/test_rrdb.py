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
)
from rrdb_layouts import AuthorsRRDB, BasicSR, Block, Dense, FirstESRGAN, Magic, Trunk, conv, network
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import leaky_relu

from ape_kernels import APEForward, NotRecognised
from ape_sr.models import RRDBNet

SIZES = [(1, 1), (3, 29), (8, 6)]


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
