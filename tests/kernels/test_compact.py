"""Compact: BasicSR's SRVGGNetCompact equals its own forward; near misses are refused by name."""

import pytest
import torch
from families import (
    assert_equals_its_forward,
    assert_leaves_as_predicted,
    assert_refused,
    edit,
    randomise,
    spread_regressor,
)
from support import DEVICE, assert_pictures_close, test_patches
from torch import nn
from torch.nn.functional import interpolate

from ape_kernels import APEForward, to_program
from ape_sr.models import SRVGGNetCompact

SIZES = [(1, 1), (3, 29), (8, 6)]
ACTIVATIONS = {
    "prelu": lambda: nn.PReLU(num_parameters=8),
    "one-prelu": lambda: nn.PReLU(init=0.4),
    "relu": lambda: nn.ReLU(inplace=True),
    "leakyrelu": lambda: nn.LeakyReLU(negative_slope=0.1, inplace=True),
}


def conv(in_channels: int = 8, out_channels: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=options.pop("padding", kernel // 2), **options)


class Compact(nn.Module):
    """BasicSR's class."""

    def __init__(self, scale: int = 2, act: str = "prelu", num_conv: int = 3, colors: int = 3) -> None:
        super().__init__()
        self.upscale, self.body = scale, nn.ModuleList()
        for width in (colors, *[8] * num_conv):
            self.body += [conv(width, 8), ACTIVATIONS[act]()]
        self.body.append(conv(8, colors * scale**2))
        self.upsampler = nn.PixelShuffle(scale)
        randomise(self, gain=1.4).to(DEVICE)

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        out = self.upsampler(out)
        out += interpolate(x, scale_factor=float(self.upscale), mode="nearest")
        return out


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4], ids=lambda s: f"x{s}")
def test_equals_its_forward(backend, scale, act):
    model = Compact(scale, act)
    fast = APEForward(model, backend=backend)
    assert fast.scale == scale
    for size in SIZES:
        patches = test_patches(3, *size)
        sr, exit_index, capacity = fast.forward_patches(patches)
        assert_pictures_close(sr, model(patches))
        assert (exit_index == 0).all()
        assert capacity.isnan().all()


@pytest.mark.parametrize("num_conv", [1, 2, 6], ids=lambda n: f"{n}convs")
def test_any_depth(backend, num_conv):
    model, patches = Compact(num_conv=num_conv), test_patches(2, 5, 7)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_one_color(backend):
    model, patches = Compact(colors=1), test_patches(2, 5, 7)[:, :1]
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_whole_images(backend):
    model, image = Compact(), test_patches(1, 13, 17)
    assert_pictures_close(APEForward(model, backend=backend)(image), model(image))


def network(scale: int = 2, exit_interval: int = 2) -> SRVGGNetCompact:
    """Ours, with exits."""
    model = randomise(SRVGGNetCompact(scale, 4, 8, exit_interval), gain=1.4)
    patches = test_patches(64, seed=2).cpu()
    spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


@pytest.mark.parametrize("scale", [1, 3, 4], ids=lambda s: f"x{s}")
def test_every_exit_equals_the_forward(scale, backend):
    model = network(scale)
    assert_equals_its_forward(model, model.forward_exits, backend, SIZES)


@pytest.mark.parametrize("exit_interval", [1, 2])
def test_patches_leave_as_predicted(exit_interval, backend):
    model = network(exit_interval=exit_interval)
    assert_leaves_as_predicted(model, model.forward_exits, backend, test_patches(24))


def test_ours_is_theirs():
    """The same keys, and the same picture."""
    theirs = Compact(3)
    ours = SRVGGNetCompact(3, 3, 8, None).eval().to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    patches = test_patches(2, 7, 9)
    assert_pictures_close(ours(patches), theirs(patches), 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=5), "scale: expected 1, 2, 3, 4 or 8, got 5"),
        (dict(n_resblocks=0), "n_resblocks: expected at least 1, got 0"),
        (dict(exit_interval=3), "exit_interval: expected a divisor of n_resblocks = 16, got 3"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SRVGGNetCompact(**options)


def test_its_program_is_one_stage_without_an_exit():
    program = to_program(Compact(4))
    assert [stage.has_exit for stage in program.stages] == [False]
    assert (program.upscale, program.out_channels) == (4, 3)


NEAR_MISSES = {
    "sequential-body": (
        lambda m: setattr(m, "body", nn.Sequential(*m.body)),
        "model.body: expected an nn.ModuleList, got Sequential",
    ),
    "conv-for-shuffle": (edit("upsampler", conv(12, 3)), "model.upsampler: expected an nn.PixelShuffle, got Conv2d"),
    "kernel-5-conv": (
        edit("body.2", conv(kernel=5)),
        r"model.body.2: expected kernel_size \(3, 3\), got \(5, 5\)",
    ),
    "strided-conv": (edit("body.4", conv(stride=2)), "model.body.4: expected stride"),
    "grouped-conv": (edit("body.4", conv(groups=2)), "model.body.4: expected groups 1, got 2"),
    "wider-conv": (edit("body.2", conv(8, 9)), "model.body.2: expected out_channels 8, got 9"),
    "batch-norm": (edit("body.3", nn.BatchNorm2d(8)), "model.body.3: expected an nn.ReLU, .*, got BatchNorm2d"),
    "gelu": (edit("body.1", nn.GELU()), "model.body.1: expected an nn.ReLU, nn.LeakyReLU or nn.PReLU, got GELU"),
    "slopes-of-another-width": (edit("body.1", nn.PReLU(4)), "model.body.1: expected num_parameters 1 or 8, got 4"),
    "activation-at-the-end": (
        lambda m: m.body.append(nn.ReLU()),
        "model.body: expected pairs of conv and activation, at least 2, and a conv, got 10 layers",
    ),
    "no-conv-between": (
        lambda m: setattr(m, "body", nn.ModuleList([conv(3), nn.ReLU(), conv(8, 12)])),
        "model.body: expected pairs of conv and activation, at least 2, and a conv, got 3 layers",
    ),
    "more-colors-out": (edit("body.8", conv(8, 16)), "model.body.8: expected out_channels 12, got 16"),
    "regressor": (
        edit("regressor", nn.Linear(8, 1)),
        "model.exit_interval: expected a whole number from 1 to 3, got None",
    ),
    "no-skip": (
        lambda m: setattr(m, "forward", lambda x: m.upsampler(nn.Sequential(*m.body)(x))),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = Compact()
    assert_refused(model, change, message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights(dtype):
    model, patches = Compact(act="leakyrelu"), test_patches(2, 6, 6)
    expected = model(patches)
    half = APEForward(model.to(dtype), backend="torch").forward_patches(patches)[0]
    assert_pictures_close(half, expected, 0.03)
