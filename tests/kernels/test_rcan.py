"""RCAN in the authors' and EDSR-PyTorch's layout, against literal forwards; near misses refused by name."""

from itertools import pairwise

import pytest
import torch
from families import assert_equals_its_forward, assert_leaves_as_predicted, assert_refused, edit, spread_regressor
from reference import literal_forward, picture_at_exit
from support import DEVICE, assert_exits_agree, assert_pictures_close, test_patches
from torch import Tensor, nn

from ape_kernels import APEForward, to_program
from ape_kernels.program import ChannelAttention
from ape_sr.models import RCAN

NETWORKS = {
    "x4-16ch-4exits": dict(scale=4, n_resgroups=4, n_resblocks=2, n_feats=16, reduction=4, exit_interval=1),
    "x3-24ch-2exits": dict(scale=3, n_resgroups=4, n_resblocks=1, n_feats=24, reduction=8, exit_interval=2),
    "x2-7ch-range-255": dict(scale=2, n_resgroups=2, n_resblocks=3, n_feats=7, reduction=3, rgb_range=255.0),
}
SIZES = [(1, 1), (3, 29), (12, 7)]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, its body's convolutions and gates strong enough that each shows in the picture."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        if parameter.shape[2:] == (1, 1) and name.startswith("body"):
            parameter.copy_(4 * torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
        elif name.startswith("body") and parameter.ndim == 4:
            parameter.mul_(2)
        elif parameter.ndim == 1 and "_mean" not in name:
            parameter.copy_(torch.empty_like(parameter).uniform_(-0.6, 0.6, generator=generator))
    return model


def spread(name: str = "x4-16ch-4exits") -> RCAN:
    """An untrained network whose predictions differ from patch to patch and exit to exit."""
    torch.manual_seed(0)
    model = randomised(RCAN(**NETWORKS[name]))
    patches = probe(model.rgb_range).cpu()
    spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


def probe(rgb_range: float = 1.0) -> Tensor:
    """The patches that regressors are fitted to."""
    return test_patches(24, seed=2) * rgb_range


def at_exits(model: nn.Module):
    """Pictures and predictions of all exits, literally."""

    def forward(patches: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        predictions = [p[:, None] for p in literal_forward(model, patches, 2.0)[2]]
        return [picture_at_exit(model, patches, i) for i in range(len(predictions))], predictions

    return forward


@pytest.mark.parametrize("name", NETWORKS)
def test_every_exit_forced_on_odd_sizes(backend, name):
    model = spread(name)
    assert_equals_its_forward(model, at_exits(model), backend, SIZES, model.rgb_range)
    patches = test_patches(2) * model.rgb_range
    assert_pictures_close(APEForward(model, 0.0, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("name", NETWORKS)
def test_leaves_as_predicted(backend, name):
    model = spread(name)
    assert_leaves_as_predicted(model, at_exits(model), backend, probe(model.rgb_range))


def test_every_exit_shows_another_picture():
    """Guards the other tests: they would prove little if groups or gates brought nothing."""
    model, patches = spread(), test_patches(4)
    pictures = [picture_at_exit(model, patches, i) for i in range(4)]
    assert all((a - b).abs().max() > 0.05 for a, b in pairwise(pictures))
    for parameter in model.body[1].body[0].body[3].conv_du.parameters():
        kept = parameter.clone()
        parameter.zero_()
        assert (picture_at_exit(model, patches, 3) - pictures[3]).abs().max() > 0.01
        parameter.copy_(kept)


def test_the_program_of_an_rcan():
    program = to_program(RCAN(3, 4, 2, 16, 4, exit_interval=2))
    assert [len(stage.steps) for stage in program.stages] == [15, 15]
    assert sum(isinstance(step, ChannelAttention) for step in program.steps()) == 8
    assert (program.upscale, program.out_channels, program.in_channels) == (3, 3, 3)


def test_a_plain_network_runs_whole(backend):
    model = randomised(RCAN(2, 2, 1, 8, 2, exit_interval=None)).to(DEVICE)
    patches = test_patches(3)
    sr, exit_index, capacity = APEForward(model, backend=backend).forward_patches(patches)
    assert_pictures_close(sr, model(patches))
    assert (exit_index == 0).all()
    assert capacity.isnan().all()


def test_training_mode_gives_all_exits():
    model, patches = spread("x3-24ch-2exits").cpu().train(), test_patches(2).cpu()
    pictures, predictions = model(patches)
    _, _, literal = literal_forward(model, patches, 2.0)
    assert len(pictures) == 2
    for i, (picture, prediction) in enumerate(zip(pictures, predictions, strict=True)):
        assert_pictures_close(picture, picture_at_exit(model, patches, i), 1e-6)
        assert_pictures_close(prediction[:, 0], literal[i], 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(exit_interval=3), "exit_interval: expected a divisor of n_resgroups = 10, got 3"),
        (dict(reduction=65), "reduction: expected 1 to n_feats = 64, got 65"),
        (dict(reduction=0), "reduction: expected 1 to n_feats = 64, got 0"),
        (dict(scale=5), "scale: expected 1, 2, 3, 4 or 8, got 5"),
    ],
)
def test_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        RCAN(**options)


class PublicCALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 16, 1), nn.Sigmoid())

    def forward(self, x):
        y = self.avg_pool(x)
        return x * self.conv_du(y)


class PublicResidual(nn.Module):
    """RCAB and group alike: body and skip, in place; the RCAB's res_scale plays no part."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.res_scale = 1

    def forward(self, x):
        res = self.body(x)
        res += x
        return res


def rcab() -> PublicResidual:
    return PublicResidual(conv(), nn.ReLU(True), conv(), PublicCALayer())


class PublicRCAN(nn.Module):
    """EDSR-PyTorch's class, and with exits the authors': training mode gives all exits, test mode leaves early."""

    def __init__(self, test_only: bool | None = None, mean_shift: bool = True) -> None:
        super().__init__()
        frame = spread().cpu()
        if mean_shift:
            self.sub_mean, self.add_mean = frame.sub_mean, frame.add_mean
        groups = [PublicResidual(rcab(), rcab(), conv()) for _ in range(3)]
        self.head, self.tail, self.body = frame.head, frame.tail, nn.Sequential(*groups, conv())
        randomised(self)
        if test_only is not None:
            self.regressor = frame.regressor
            patches = probe().cpu()
            spread_regressor(self, [self.body[:2](self.head(self.sub_mean(patches)))], patches)
            self.exit_interval, self.exit_threshold, self.test_only = 2, 0.5, test_only
        self.to(DEVICE)

    def forward(self, x):
        if not hasattr(self, "regressor"):
            x = self.head(self.sub_mean(x) if hasattr(self, "sub_mean") else x)
            res = self.body(x)
            res += x
            x = self.tail(res)
            return self.add_mean(x) if hasattr(self, "add_mean") else x
        if self.test_only:
            sr, exit_index, predictions = literal_forward(self, x, self.exit_threshold)
            return sr, exit_index.float(), predictions[-1][:, None]
        x = self.head(self.sub_mean(x))
        res, outputs, predictions = x, [], []
        for i, group in enumerate(self.body[:-1], start=1):
            res = group(res)
            if i % self.exit_interval == 0:
                outputs.append(self.add_mean(self.tail(x + self.body[-1](res))))
                predictions.append(self.regressor(res))
        return outputs, predictions


@pytest.mark.parametrize("mean_shift", [True, False], ids=["with-mean-shift", "without-mean-shift"])
def test_the_public_class(mean_shift, backend):
    model, patches = PublicRCAN(mean_shift=mean_shift), test_patches(3, 5, 8)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_a_forward_that_multiplies_inside(backend):
    """torchSR's class, which takes pixels from 0 to 1."""
    model, patches = PublicRCAN(), test_patches(3, 5, 8)
    for shift in (model.sub_mean, model.add_mean):
        shift.bias.mul_(255)
    model.forward = lambda x, scale=None: PublicRCAN.forward(model, 255 * x) / 255
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_the_authors_class(test_only, backend):
    model, patches = PublicRCAN(test_only), probe()
    wrapped = APEForward(model, backend=backend)
    assert wrapped.threshold == 0.5
    assert [stage.has_exit for stage in wrapped.program.stages] == [True, False]
    sr, exit_index, _ = wrapped.forward_patches(patches)
    literal, expected, predictions = literal_forward(model, patches, 0.5)
    assert assert_exits_agree(exit_index, [*predictions, torch.ones(24)], 0.5) == 0
    assert_pictures_close(sr, literal)
    assert set(expected.tolist()) == {0, -1}


def insert(path: str, position: int, module: nn.Module):
    return lambda model: model.get_submodule(path).insert(position, module)


def conv(kernel: int = 3, in_channels: int = 16, out_channels: int = 16, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options)


class Shifting(nn.Module):
    """A block by its parts, something else by its forward: attention outside the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.body = rcab().body

    def forward(self, x):
        return self.body[3](x + self.body[:3](x))


BLOCK = "body.1.body.0"
GATE = f"{BLOCK}.body.3"
NEAR_MISSES = {
    "kernel-5-head": (edit("head.0", conv(5, 3)), r"model.head.0: expected kernel_size \(3, 3\), got \(5, 5\)"),
    "conv-among-groups": (edit("body.1", conv()), "model.body.1: expected a residual group with .body"),
    "edsr-block-among-groups": (
        edit("body.1", PublicResidual(conv(), nn.ReLU(), conv())),
        r"model.body.1.body.0: expected a block with .body = \[conv, ReLU, conv, attention\], got Conv2d",
    ),
    "group-without-blocks": (
        edit("body.2", PublicResidual(conv())),
        "model.body.2.body: expected residual blocks and a closing conv, got 1 layers",
    ),
    "no-groups": (
        lambda m: [m.body[0].body.insert(i, rcab()) for i in range(2)] and setattr(m, "body", m.body[:1]),
        "model.body: expected residual blocks and a closing conv, got 1 layers",
    ),
    "group-without-closing-conv": (
        lambda m: m.body[1].body.append(rcab()),
        "model.body.1.body.3: expected an nn.Conv2d 3x3, got PublicResidual",
    ),
    "attention-beside-group": (edit("body.1.gate", conv(1)), "model.body.1.gate: expected no such submodule"),
    "attention-beside-block": (edit(f"{BLOCK}.gate", conv(1)), f"model.{BLOCK}.gate: expected no such submodule"),
    "batch-norm-in-block": (
        insert(f"{BLOCK}.body", 1, nn.BatchNorm2d(16)),
        f"model.{BLOCK}.body: expected 4 layers, got 5",
    ),
    "prelu-in-block": (edit(f"{BLOCK}.body.1", nn.PReLU()), f"model.{BLOCK}.body.1: expected an nn.ReLU, got PReLU"),
    "dilated-block": (
        edit(f"{BLOCK}.body.2", nn.Conv2d(16, 16, 3, padding=2, dilation=2)),
        f"model.{BLOCK}.body.2: expected dilation",
    ),
    "res-scale": (edit(f"{BLOCK}.res_scale", 0.1), f"model.{BLOCK}.res_scale: expected 1, got 0.1"),
    "sigmoid-for-attention": (
        edit(GATE, nn.Sigmoid()),
        f"model.{GATE}: expected a channel attention with avg_pool and conv_du, got Sigmoid",
    ),
    "attention-with-more": (edit(f"{GATE}.conv_max", conv(1)), f"model.{GATE}.conv_max: expected no such submodule"),
    "max-pooled-attention": (
        edit(f"{GATE}.avg_pool", nn.AdaptiveMaxPool2d(1)),
        f"model.{GATE}.avg_pool: expected an nn.AdaptiveAvgPool2d, got AdaptiveMaxPool2d",
    ),
    "attention-pooled-to-two": (
        edit(f"{GATE}.avg_pool", nn.AdaptiveAvgPool2d(2)),
        f"model.{GATE}.avg_pool: expected output_size 1, got 2",
    ),
    "kernel-3-squeeze": (edit(f"{GATE}.conv_du.0", conv(3, 16, 4)), f"model.{GATE}.conv_du.0: expected kernel_size"),
    "grouped-expand": (
        edit(f"{GATE}.conv_du.2", conv(1, 4, 16, groups=2)),
        f"model.{GATE}.conv_du.2: expected groups 1, got 2",
    ),
    "swish-in-gate": (edit(f"{GATE}.conv_du.1", nn.SiLU()), f"model.{GATE}.conv_du.1: expected an nn.ReLU, got SiLU"),
    "hard-sigmoid": (
        edit(f"{GATE}.conv_du.3", nn.Hardsigmoid()),
        f"model.{GATE}.conv_du.3: expected an nn.Sigmoid, got Hardsigmoid",
    ),
    "relu-in-upsampler": (insert("tail.0", 2, nn.ReLU()), "model.tail.0: expected pairs of conv and PixelShuffle"),
    "exit-interval-in-blocks": (
        edit("exit_interval", 8),
        "model.exit_interval: expected a whole number from 1 to 4, got 8",
    ),
    "folding-without-unshuffle": (edit("downscale_factor", 2), "model.head: expected 2 layers, got 1"),
    "range-without-scaling": (
        lambda m: setattr(m, "downscale_factor", 1) or setattr(m, "rgb_range", 255),
        "model: its forward does something else than its layers say",
    ),
    "attention-after-skip": (edit(BLOCK, Shifting()), "model: its forward does something else than its layers say"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = spread()
    assert_refused(model, change, message)
