"""VDSR: every layout equals its own forward at every exit; near misses are refused by name."""

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
from torch.nn.functional import interpolate

from ape_kernels import APEForward, NotRecognised, to_program
from ape_kernels.program import Upsample
from ape_sr.models import VDSR

SIZES = [(1, 1), (3, 29), (8, 6)]


def conv(in_channels: int = 8, out_channels: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=options.pop("padding", kernel // 2), **options)


def network(scale: int = 2, n_resblocks: int = 6, exit_interval: int | None = 1, feats: int = 8) -> VDSR:
    model = randomise(VDSR(scale, n_resblocks, feats, exit_interval), gain=1.7)
    if exit_interval is not None:
        patches = test_patches(64, seed=2).cpu()
        spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


class AuthorsVDSR(nn.Module):
    """The authors' class: a forward with two modes; the interval need not divide the layers."""

    def __init__(self, test_only: bool, n_resblocks: int = 6, exit_interval: int = 1) -> None:
        super().__init__()
        ours = network(2, n_resblocks, 1)
        for name, child in ours.named_children():
            self.add_module(name, child)
        self.exit_interval, self.exit_threshold, self.test_only = exit_interval, 0.5, test_only

    def forward(self, x):
        x = self.sub_mean(self.upsample(x))
        res = self.body[0](x)
        pictures, predictions = [], []
        exit_index, running = torch.full((len(x),), -1.0), torch.arange(len(x))
        for i, layer in enumerate(self.body[1:-1]):
            if self.test_only:
                res[running] = layer(res[running])
            else:
                res = layer(res)
            if i % self.exit_interval == self.exit_interval - 1:
                prediction = self.regressor(res)
                predictions.append(prediction)
                pictures.append(self.add_mean(x + self.body[-1](res)))
                leaves = (prediction[:, 0] >= self.exit_threshold) & (exit_index < 0)
                exit_index[leaves] = i // self.exit_interval
                running = torch.where(prediction[:, 0] < self.exit_threshold)[0]
        if not self.test_only:
            return pictures, predictions
        return self.add_mean(x + self.body[-1](res)), exit_index, predictions[-1]


class PlainVDSR(nn.Module):
    """The class of EDSR-PyTorch: images come upsampled, convolutions have no bias, there are no exits."""

    def __init__(self) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        blocks = [nn.Sequential(conv(width, 8, bias=False), nn.ReLU(True)) for width in (3, 8, 8, 8)]
        self.body = nn.Sequential(*blocks, nn.Sequential(conv(8, 3, bias=False)))
        randomise(self, gain=1.7)

    def forward(self, x):
        x = self.sub_mean(x)
        return self.add_mean(self.body(x) + x)


class FlatVDSR(nn.Module):
    """torchSR's class: layers in one sequence; the forward upsamples."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        middle = [layer for _ in range(3) for layer in (conv(), nn.ReLU(True))]
        self.body = nn.Sequential(conv(3), nn.ReLU(True), *middle, conv(8, 3))
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x, scale=None):
        x = interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        x = self.sub_mean(x)
        res = self.body(x)
        res += x
        return self.add_mean(res)


class ConvReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(bias=False), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


class GreyVDSR(nn.Module):
    """twtygqyy's class: one channel, upsampled before; no mean shift."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_layer = nn.Sequential(*(ConvReLU() for _ in range(3)))
        self.input, self.output = conv(1, bias=False), conv(8, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x):
        out = self.residual_layer(self.relu(self.input(x)))
        return torch.add(self.output(out), x)


class FirstGreyVDSR(nn.Module):
    """The same, as it was written first."""

    def __init__(self) -> None:
        super().__init__()
        middle = [layer for _ in range(3) for layer in (conv(bias=False), nn.ReLU(inplace=True))]
        self.features = nn.Sequential(conv(1, bias=False), nn.ReLU(inplace=True), *middle, conv(8, 1, bias=False))
        randomise(self, gain=1.7).to(DEVICE)

    def forward(self, x):
        return torch.add(self.features(x), x)


@pytest.mark.parametrize("exit_interval", [1, 2, 3], ids=lambda n: f"every{n}")
@pytest.mark.parametrize("scale", [2, 3, 4], ids=lambda s: f"x{s}")
def test_equals_its_forward_at_every_exit(backend, scale, exit_interval):
    model = network(scale, 8, exit_interval)
    assert_equals_its_forward(model, model.forward_exits, backend, SIZES)


@pytest.mark.parametrize("exit_interval", [1, 2], ids=lambda n: f"every{n}")
def test_leaves_as_predicted(backend, exit_interval):
    model = network(2, 6, exit_interval)
    assert_leaves_as_predicted(model, model.forward_exits, backend, test_patches(24))


@pytest.mark.parametrize("n_resblocks", [3, 4, 7], ids=lambda n: f"{n}layers")
def test_a_plain_network(backend, n_resblocks):
    model = network(3, n_resblocks, None, feats=17)
    patches = test_patches(3, 5, 7)
    sr, _, capacity = APEForward(model, backend=backend).forward_patches(patches)
    assert_pictures_close(sr, model(patches))
    assert capacity.isnan().all()


def test_images_in_the_published_range(backend):
    model = VDSR(2, 5, 8, 3, rgb_range=255.0).to(DEVICE).eval().requires_grad_(False)
    assert_equals_its_forward(model, model.forward_exits, backend, [(5, 7)], value_range=255.0)


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_the_authors_class(backend, test_only):
    model = AuthorsVDSR(test_only).to(DEVICE).eval()
    patches = test_patches(12)
    sr, exit_index, _ = APEForward(model, backend=backend).forward_patches(patches)
    model.test_only = True
    expected, literal, _ = model(patches)
    assert_pictures_close(sr, expected)
    assert torch.equal(exit_index, torch.where(literal < 0, 3, literal.long()))
    assert len(set(exit_index.tolist())) > 1


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_layers_after_the_last_exit_belong_to_full_depth(backend, test_only):
    model = AuthorsVDSR(test_only, n_resblocks=7, exit_interval=2).to(DEVICE).eval()
    fast = APEForward(model, 0.0, backend=backend)
    assert [stage.has_exit for stage in fast.program.stages] == [True, True, False]
    patches = test_patches(3)
    x = model.sub_mean(model.upsample(patches))
    assert_pictures_close(fast.forward_patches(patches)[0], model.add_mean(x + model.body(x)))


def test_the_plain_class_takes_upsampled_images(backend):
    model = PlainVDSR().to(DEVICE)
    for size in SIZES:
        patches = test_patches(2, *size)
        fast = APEForward(model, backend=backend)
        assert fast.scale == 1
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("scale", [2, 3])
def test_the_flat_class_upsamples_itself(scale, backend):
    model = FlatVDSR(scale)
    fast = APEForward(model, backend=backend)
    assert fast.scale == scale
    for size in SIZES:
        patches = test_patches(2, *size)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("kind", [GreyVDSR, FirstGreyVDSR])
def test_the_grey_classes(kind, backend):
    model = kind()
    fast = APEForward(model, backend=backend)
    for size in SIZES:
        patches = test_patches(2, *size)[:, :1]
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_networks_of_the_published_range(dtype):
    """Tried on pixels from 0 to 255: beside a mean of 110 those from 0 to 1 are rounded away."""
    model = PlainVDSR()
    for shift, sign in ((model.sub_mean, -1), (model.add_mean, 1)):
        shift.weight.copy_(torch.eye(3)[:, :, None, None])
        shift.bias.copy_(sign * 255 * torch.tensor([0.4488, 0.4371, 0.4040]))
    model.body[-1][0].weight.mul_(0.01)
    patches = 255 * test_patches(2, 6, 7)
    expected = model(patches)
    fast = APEForward(model.to(dtype), backend="torch")
    assert_pictures_close(fast.forward_patches(patches)[0], expected, 0.02)
    model.forward = lambda x: PlainVDSR.forward(model, x) + 60
    with pytest.raises(NotRecognised, match="its forward does something else"):
        APEForward(model)


def test_features_are_copied_only_where_the_number_of_layers_asks_for_it():
    copies = lambda interval: [  # noqa: E731
        sum(isinstance(step, Upsample) for step in stage.steps) for stage in to_program(network(2, 8, interval)).stages
    ]
    assert copies(2) == [0, 0, 0]
    assert copies(3) == [0, 1]
    assert copies(1) == [0, 1, 1, 1, 1, 1]


def test_whole_images(backend):
    model = network()
    image = test_patches(1, 13, 17)
    assert_pictures_close(APEForward(model, 0.0, backend=backend)(image), model(image))


class Tripling(nn.Sequential):
    def forward(self, x):
        return 3 * super().forward(x)


NEAR_MISSES = {
    "bilinear": (
        edit("upsample", nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
        "model.upsample: expected mode bicubic, got bilinear",
    ),
    "aligned-corners": (
        edit("upsample", nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True)),
        "model.upsample: expected align_corners False, got True",
    ),
    "half-scale": (
        edit("upsample", nn.Upsample(scale_factor=1.5, mode="bicubic")),
        "model.upsample: expected scale_factor a whole number, got 1.5",
    ),
    "uneven-scale": (
        edit("upsample", nn.Upsample(scale_factor=(2, 3), mode="bicubic")),
        "model.upsample: expected scale_factor a whole number",
    ),
    "fixed-size": (
        edit("upsample", nn.Upsample(size=(14, 12), mode="bicubic")),
        r"model.upsample: expected size None, got \(14, 12\)",
    ),
    "conv-for-upsample": (
        edit("upsample", nn.ConvTranspose2d(3, 3, 2, stride=2)),
        "model.upsample: expected an nn.Upsample, got ConvTranspose2d",
    ),
    "kernel-3-shift": (edit("sub_mean", conv(3, 3)), r"model.sub_mean: expected kernel_size \(1, 1\), got \(3, 3\)"),
    "identity-for-shift": (edit("add_mean", nn.Identity()), "model.add_mean: expected an nn.Conv2d 1x1, got Identity"),
    "kernel-5-layer": (
        edit("body.2.0", conv(kernel=5)),
        r"model.body.2.0: expected kernel_size \(3, 3\), got \(5, 5\)",
    ),
    "dilated-layer": (edit("body.2.0", conv(dilation=2, padding=2)), "model.body.2.0: expected dilation"),
    "wider-layer": (edit("body.0.0", conv(3, 9)), "model.body.1.0: expected in_channels 9, got 8"),
    "batch-norm-in-layer": (
        lambda m: m.body[1].insert(1, nn.BatchNorm2d(8)),
        "model.body.1: expected 2 layers, got 3",
    ),
    "sigmoid-in-layer": (
        edit("body.3.1", nn.Sigmoid()),
        "model.body.3.1: expected an nn.ReLU, nn.LeakyReLU or nn.PReLU, got Sigmoid",
    ),
    "bare-conv-layer": (edit("body.3", conv()), "model.body.3: expected an nn.Sequential, got Conv2d"),
    "relu-after-last-conv": (lambda m: m.body[5].append(nn.ReLU()), "model.body.5: expected 1 layers, got 2"),
    "more-colors-out": (edit("body.5.0", conv(8, 4)), "model.body.5.0: expected out_channels 3, got 4"),
    "no-layer-between": (edit("body", nn.Sequential(nn.Sequential(conv(3)))), "model.body: expected at least 3"),
    "extra-submodule": (edit("refine", conv()), "model.refine: expected no such submodule"),
    "wider-regressor": (edit("regressor.2", nn.Linear(9, 1)), r"model.regressor.2: expected nn.Linear\(8, 1\)"),
    "no-exit-interval": (remove("exit_interval"), "model.exit_interval: expected a whole number from 1 to 4"),
    "layer-with-own-forward": (
        edit("body.2", Tripling(conv(), nn.ReLU())),
        "model.body.2: expected an nn.Sequential, got Tripling",
    ),
    "another-forward": (
        lambda m: setattr(m, "forward", lambda x: 2 * VDSR.forward(m, x)),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = network()
    assert_refused(model, change, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=5), "scale: expected 2, 3 or 4, got 5"),
        (dict(n_resblocks=2), "n_resblocks: expected at least 3, got 2"),
        (dict(exit_interval=4), "exit_interval: expected a divisor of n_resblocks - 2 = 18, got 4"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        VDSR(**options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_the_pixels_it_adds_to(dtype):
    """The convolutions bring nothing here: what is left is the image upsampled, the mean taken off and put back."""
    model = network(2, 3, None)
    model.body[-1][0].weight.zero_()
    for shift in (model.sub_mean, model.add_mean):
        shift.weight.copy_(torch.eye(3)[:, :, None, None])
        shift.bias.mul_(255)
    patches = 255 * test_patches(2, 6, 6)
    sr = APEForward(model, backend="torch", dtype=dtype).forward_patches(patches)[0]
    assert_pictures_close(sr, model(patches))
