"""ECBSR: blocks fold exactly, every layout equals its own forward at every exit, near misses are refused by name."""

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
from torch.nn.functional import conv2d, pad, pixel_unshuffle

from ape_kernels import APEForward, to_program
from ape_kernels.adapters.ecbsr import fold_ecb
from ape_kernels.program import Conv
from ape_sr.models import ECBSR
from ape_sr.models.ecbsr import ECB

SIZES = [(1, 1), (3, 29), (8, 6)]


def network(scale: int = 2, n_blocks: int = 4, exit_interval: int | None = 1, with_idt: bool = True) -> ECBSR:
    model = randomise(ECBSR(scale, n_blocks, 8, exit_interval, with_idt=with_idt), gain=0.6)
    if exit_interval is not None:
        patches = test_patches(64, seed=2).cpu()
        spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


class SeqConv(nn.Module):
    """A branch as the block's authors have it: the 1x1 convolution's result is padded with its bias."""

    def __init__(self, kind: str, in_planes: int, out_planes: int) -> None:
        super().__init__()
        self.type = kind
        first = nn.Conv2d(in_planes, 2 * out_planes if kind == "conv3x3" else out_planes, 1)
        self.k0, self.b0 = first.weight, first.bias
        if kind == "conv3x3":
            second = nn.Conv2d(2 * out_planes, out_planes, 3)
            self.k1, self.b1 = second.weight, second.bias
            return
        self.scale, self.bias = nn.Parameter(torch.randn(out_planes, 1, 1, 1)), nn.Parameter(torch.randn(out_planes))
        mask = {
            "sobelx": [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]],
            "sobely": [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]],
            "laplacian": [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]],
        }[kind]
        self.mask = nn.Parameter(torch.tensor(mask).repeat(out_planes, 1, 1, 1), requires_grad=False)

    def forward(self, x):
        y = conv2d(x, self.k0, self.b0)
        y = torch.stack([pad(y[:, c], (1, 1, 1, 1), value=float(b)) for c, b in enumerate(self.b0)], dim=1)
        if self.type == "conv3x3":
            return conv2d(y, self.k1, self.b1)
        return conv2d(y, self.scale * self.mask, self.bias, groups=len(self.mask))


class AuthorsECB(nn.Module):
    def __init__(self, in_planes: int, out_planes: int, act: str = "prelu", with_idt: bool = True) -> None:
        super().__init__()
        self.with_idt, self.act_type = with_idt and in_planes == out_planes, act
        self.conv3x3 = nn.Conv2d(in_planes, out_planes, 3, padding=1)
        self.conv1x1_3x3 = SeqConv("conv3x3", in_planes, out_planes)
        self.conv1x1_sbx = SeqConv("sobelx", in_planes, out_planes)
        self.conv1x1_sby = SeqConv("sobely", in_planes, out_planes)
        self.conv1x1_lpl = SeqConv("laplacian", in_planes, out_planes)
        if act != "linear":
            self.act = nn.PReLU(out_planes) if act == "prelu" else nn.ReLU(inplace=True)

    def branches(self, x):
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x) + self.conv1x1_sby(x) + self.conv1x1_lpl(x)
        return y + x if self.with_idt else y

    def forward(self, x):
        y = self.branches(x)
        return y if self.act_type == "linear" else self.act(y)


def authors_blocks(count: int, colors: int, scale: int, act: str = "prelu", with_idt: bool = True) -> list[nn.Module]:
    middle = [AuthorsECB(8, 8, act, with_idt) for _ in range(count)]
    blocks = [AuthorsECB(colors, 8, act, with_idt), *middle, AuthorsECB(8, colors * scale**2, "linear", with_idt)]
    for i, block in enumerate(blocks):
        masks = [p.clone() for name, p in block.named_parameters() if name.endswith("mask")]
        randomise(block, gain=0.6, seed=i)
        for branch, mask in zip((block.conv1x1_sbx, block.conv1x1_sby, block.conv1x1_lpl), masks, strict=True):
            branch.mask.copy_(mask)
    return blocks


class AuthorsECBSR(nn.Module):
    """The class of the APE authors, plain or with exits and a forward with two modes."""

    def __init__(self, scale: int = 2, exits: bool = True, test_only: bool = False, blocks: int = 4) -> None:
        super().__init__()
        first, *rest = authors_blocks(blocks, 3, scale)
        self.scale, self.test_only = scale, test_only
        self.upsample = nn.Upsample(scale_factor=scale, mode="bicubic", align_corners=False)
        self.head, self.body = nn.Sequential(first), nn.Sequential(*rest)
        self.tail = nn.Sequential(nn.PixelShuffle(scale))
        if exits:
            self.exit_interval, self.exit_threshold = 1, 0.5
            self.regressor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1), nn.Tanh())
            patches, features = test_patches(64, seed=2).cpu(), []
            stream = self.head(patches)
            for block in self.body[:-1]:
                stream = block(stream)
                features.append(stream)
            spread_regressor(self.requires_grad_(False), features, patches)

    def forward(self, x):
        unshuffled = pixel_unshuffle(self.upsample(x), self.scale)
        res = self.head(x)
        if not hasattr(self, "regressor"):
            return self.tail(self.body(res) + unshuffled)
        pictures, predictions = [], []
        exit_index = torch.full((len(x),), -1.0)
        for i, block in enumerate(self.body[:-1]):
            still = exit_index < 0
            res = torch.where(still[:, None, None, None], block(res), res) if self.test_only else block(res)
            predictions.append(self.regressor(res))
            pictures.append(self.tail(unshuffled + self.body[-1](res)))
            exit_index[still & (predictions[-1][:, 0] >= self.exit_threshold)] = i
        if not self.test_only:
            return pictures, predictions
        return self.tail(unshuffled + self.body[-1](res)), exit_index, predictions[-1]


class BackboneECBSR(nn.Module):
    """BasicSR's class; with one color the block's authors' too."""

    def __init__(self, colors: int, scale: int, act: str = "prelu") -> None:
        super().__init__()
        self.scale = scale
        self.backbone = nn.Sequential(*authors_blocks(2, colors, scale, act))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x):
        shortcut = torch.repeat_interleave(x, self.scale**2, dim=1) if x.shape[1] > 1 else x
        return self.upsampler(self.backbone(x) + shortcut)


class PlainBlock(nn.Module):
    def __init__(self, in_planes: int, out_planes: int, act: nn.Module | None) -> None:
        super().__init__()
        self.conv3x3, self.act = nn.Conv2d(in_planes, out_planes, 3, padding=1), act

    def forward(self, x):
        x = self.conv3x3(x)
        return x if self.act is None else self.act(x)


class PlainSR(nn.Module):
    """What the block's authors compare with: the same network of plain convolutions, on one channel."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            PlainBlock(1, 8, nn.PReLU(8)), PlainBlock(8, 8, nn.ReLU(True)), PlainBlock(8, scale**2, None)
        )
        self.upsampler = nn.PixelShuffle(scale)
        randomise(self).to(DEVICE)

    def forward(self, x):
        return self.upsampler(self.backbone(x) + x)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("colors", "channels"), [(3, 8), (5, 5)], ids=["widening", "identity"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "authors"])
def test_a_block_folds_exactly(ours, colors, channels, size):
    torch.manual_seed(0)
    ecb = ECB(colors, channels, True, linear=True) if ours else AuthorsECB(colors, channels, "linear")
    for parameter in ecb.double().requires_grad_(False).parameters():
        parameter.normal_()
    weight, bias = fold_ecb(ecb, "body.0")
    x = torch.randn(2, colors, *size, dtype=torch.float64)
    expected = ecb(x)
    assert (conv2d(x, weight, bias, padding=1) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("exit_interval", [1, 2], ids=lambda n: f"every{n}")
@pytest.mark.parametrize("scale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_equals_its_forward_at_every_exit(backend, scale, exit_interval):
    model = network(scale, 4, exit_interval, with_idt=scale != 3)
    assert_equals_its_forward(model, model.forward_exits, backend, SIZES)


@pytest.mark.parametrize("exit_interval", [1, 2], ids=lambda n: f"every{n}")
def test_leaves_as_predicted(backend, exit_interval):
    model = network(2, 4, exit_interval)
    assert_leaves_as_predicted(model, model.forward_exits, backend, test_patches(24))


def test_a_plain_network(backend):
    model = network(exit_interval=None)
    patches = test_patches(3, 5, 7)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_the_authors_class(backend, test_only):
    model = AuthorsECBSR(test_only=test_only).to(DEVICE).eval()
    patches = test_patches(12)
    sr, exit_index, _ = APEForward(model, backend=backend).forward_patches(patches)
    model.test_only = True
    expected, literal, _ = model(patches)
    assert_pictures_close(sr, expected)
    assert torch.equal(exit_index, torch.where(literal < 0, 3, literal.long()))
    assert len(set(exit_index.tolist())) > 1


@pytest.mark.parametrize("scale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_the_authors_plain_class(backend, scale):
    model = AuthorsECBSR(scale, exits=False).to(DEVICE)
    for size in SIZES:
        patches = test_patches(2, *size)
        assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("act", ["prelu", "relu"])
@pytest.mark.parametrize("colors", [1, 3], ids=lambda c: f"{c}colors")
@pytest.mark.parametrize("scale", [2, 4], ids=lambda s: f"x{s}")
def test_the_backbone_classes(backend, scale, colors, act):
    model = BackboneECBSR(colors, scale, act).to(DEVICE)
    for size in SIZES:
        patches = test_patches(2, *size)[:, :colors]
        assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("scale", [2, 3])
def test_plain_blocks(scale, backend):
    model = PlainSR(scale)
    for size in SIZES:
        patches = test_patches(2, *size)[:, :1]
        assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_every_block_is_one_convolution():
    program = to_program(network(n_blocks=4, exit_interval=2))
    assert [sum(isinstance(step, Conv) for step in stage.steps) for stage in program.stages] == [2, 2]
    assert {tuple(step.weight.shape) for stage in program.stages for step in stage.steps if isinstance(step, Conv)} == {
        (8, 8, 3, 3)
    }


def test_changed_weights_are_folded_anew(backend):
    model, patches = network(exit_interval=None), test_patches(2)
    fast = APEForward(model, backend=backend)
    fast.forward_patches(patches)
    model.body[1].conv1x1_lpl.scale.mul_(-2)
    assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


NEAR_MISSES = {
    "bilinear": (
        edit("upsample", nn.Upsample(scale_factor=2, mode="bilinear")),
        "model.upsample: expected mode bicubic, got bilinear",
    ),
    "another-upsampling": (
        edit("upsample", nn.Upsample(scale_factor=4, mode="bicubic")),
        "model.upsample: expected scale_factor 2, got 4",
    ),
    "two-blocks-in-head": (lambda m: m.head.append(ECB(8, 8, True)), "model.head: expected 1 layers, got 2"),
    "conv-for-block": (
        edit("body.1", nn.Conv2d(8, 8, 3, padding=1)),
        r"model.body.1: expected an ECB \(conv3x3, .*\), got Conv2d",
    ),
    "kernel-5-branch": (
        edit("body.1.conv3x3", nn.Conv2d(8, 8, 5, padding=2)),
        r"model.body.1.conv3x3: expected kernel_size \(3, 3\), got \(5, 5\)",
    ),
    "no-laplacian": (
        remove("body.1.conv1x1_lpl"),
        "model.body.1.conv1x1_lpl: expected a branch with the parameters k0, b0, scale, mask, bias, got None",
    ),
    "conv-for-branch": (
        edit("body.1.conv1x1_sbx", nn.Conv2d(8, 8, 3, padding=1)),
        "model.body.1.conv1x1_sbx: expected a branch with the parameters k0, b0, .*, got weight, bias",
    ),
    "narrower-branch": (
        edit("body.1.conv1x1_sby.k0", nn.Parameter(torch.zeros(8, 7, 1, 1))),
        r"model.body.1.conv1x1_sby.k0: expected the shape \[8, 8, 1, 1\], got \[8, 7, 1, 1\]",
    ),
    "torn-branch": (
        edit("body.1.conv1x1_3x3.k1", nn.Parameter(torch.zeros(8, 15, 3, 3))),
        r"model.body.1.conv1x1_3x3.k1: expected the shape \[8, 16, 3, 3\], got \[8, 15, 3, 3\]",
    ),
    "sixth-branch": (
        edit("body.2.conv5x5", nn.Conv2d(8, 8, 5, padding=2)),
        "model.body.2.conv5x5: expected no such submodule",
    ),
    "identity-in-widening-block": (
        edit("head.0.with_idt", True),
        "model.head.0.with_idt: expected False from 3 channels to 8, got True",
    ),
    "softplus": (
        edit("body.0.act", nn.Softplus()),
        "model.body.0.act: expected an nn.ReLU, nn.LeakyReLU or nn.PReLU, got Softplus",
    ),
    "slopes-of-another-width": (
        edit("body.0.act", nn.PReLU(4)),
        "model.body.0.act: expected num_parameters 1 or 8, got 4",
    ),
    "activation-at-the-end": (edit("body.4.act", nn.PReLU()), "model.body.4.act: expected no activation, got PReLU"),
    "wider-block": (edit("body.2", ECB(8, 9, True)), "model.body.2: expected 8 channels to 8, got 8 to 9"),
    "last-block-of-another-scale": (
        edit("body.4", ECB(8, 27, True, linear=True)),
        "model.body.4: expected 8 channels to 12, got 8 to 27",
    ),
    "no-blocks": (
        edit("body", nn.Sequential(ECB(8, 12, True, linear=True))),
        "model.body: expected ECBs before the last one, got 2 in all",
    ),
    "conv-for-shuffle": (
        edit("tail.0", nn.Conv2d(12, 3, 1)),
        "model.tail.0: expected an nn.PixelShuffle, got Conv2d",
    ),
    "conv-after-shuffle": (
        lambda m: m.tail.append(nn.Conv2d(3, 3, 3, padding=1)),
        "model.tail: expected 1 layers, got 2",
    ),
    "mean-shift": (edit("sub_mean", nn.Conv2d(3, 3, 1)), "model.sub_mean: expected no such submodule"),
    "sigmoid-regressor": (edit("regressor.3", nn.Sigmoid()), "model.regressor.3: expected an nn.Tanh, got Sigmoid"),
    "exit-interval-too-long": (edit("exit_interval", 5), "model.exit_interval: expected a whole number from 1 to 4"),
    "block-with-own-forward": (
        lambda m: setattr(m.body[1], "forward", lambda x: x),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = network()
    assert_refused(model, change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("upsampler", nn.Upsample(scale_factor=2)), "model.upsampler: expected an nn.PixelShuffle, got Upsample"),
        (edit("backbone", nn.ModuleList()), "model.backbone: expected an nn.Sequential, got ModuleList"),
        (edit("backbone", nn.Sequential()), "model.backbone: expected ECBs before the last one, got 0 in all"),
        (edit("refine", nn.Conv2d(3, 3, 1)), "model.refine: expected no such submodule"),
        (lambda m: setattr(m, "forward", lambda x: m.upsampler(m.backbone(x))), "its forward does something else"),
    ],
)
def test_near_misses_of_the_backbone_class(change, message):
    model = BackboneECBSR(3, 2)
    assert_refused(model, change, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=5), "scale: expected 2, 3 or 4, got 5"),
        (dict(exit_interval=3), "exit_interval: expected a divisor of n_blocks = 16, got 3"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ECBSR(**options)
