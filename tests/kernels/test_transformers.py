"""HAT and DAT: what surrounds their deep features is recognised; these run as the module they are."""

import pytest
import torch
from families import assert_refused, edit, remove
from support import DEVICE, assert_pictures_close, test_patches
from swinir_layouts import conv, strong
from torch import nn

from ape_kernels import APEForward
from ape_sr.models.edsr import Upsampler

CHANNELS, WINDOW = 12, 4


class Mixing(nn.Module):
    """Stands for attention: every token with the mean of its window; dropped in training, as paths are."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.proj = window, nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x, x_size):
        maps = x.transpose(1, 2).unflatten(2, x_size)
        mean = nn.functional.avg_pool2d(maps, self.window, ceil_mode=True)
        mean = nn.functional.interpolate(mean, scale_factor=self.window)[:, :, : x_size[0], : x_size[1]]
        return x if self.training else x + self.proj(mean.flatten(2).transpose(1, 2))


class HATGroup(nn.Module):
    """Blocks and attention between windows; the parameters of all groups are made once per picture."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_group = nn.Module()
        self.residual_group.blocks = nn.ModuleList([Mixing(WINDOW)])
        self.residual_group.overlap_attn = Mixing(WINDOW)
        self.conv = conv()

    def forward(self, x, x_size, params):
        inner = self.residual_group.blocks[0](x, x_size)
        inner = self.residual_group.overlap_attn(inner, x_size) * params["factor"]
        return x + self.conv(inner.transpose(1, 2).unflatten(2, x_size)).flatten(2).transpose(1, 2)


class DATGroup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.conv = nn.ModuleList([Mixing(3)]), conv()

    def forward(self, x, x_size):
        inner = self.blocks[0](x, x_size).transpose(1, 2).unflatten(2, x_size)
        return x + self.conv(inner).flatten(2).transpose(1, 2)


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Network(nn.Module):
    """What the two have in common."""

    def __init__(self, scale: int = 2, direct: bool = False) -> None:
        super().__init__()
        self.upscale, self.img_range = scale, 2.0
        self.mean = torch.tensor((0.4488, 0.4371, 0.4040)).view(1, 3, 1, 1)
        self.conv_first, self.norm, self.conv_after_body = conv(3), nn.LayerNorm(CHANNELS), conv()
        if direct:
            self.upsample = nn.Sequential(conv(CHANNELS, 3 * scale**2), nn.PixelShuffle(scale))
        else:
            self.conv_before_upsample = nn.Sequential(conv(CHANNELS, 8), nn.LeakyReLU(inplace=True))
            self.upsample, self.conv_last = Upsampler(scale, 8), conv(8, 3)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        x = (x - self.mean) * self.img_range
        first = self.conv_first(x)
        x = self.conv_after_body(self.forward_features(first)) + first
        x = (
            self.conv_last(self.upsample(self.conv_before_upsample(x)))
            if hasattr(self, "conv_last")
            else self.upsample(x)
        )
        return x / self.img_range + self.mean


class HAT(Network):
    """Takes whole windows, as its authors pad images outside of it."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.window_size = WINDOW
        self.register_buffer("relative_position_index_SA", torch.arange(4))
        self.patch_embed, self.pos_drop = Tokens(), nn.Dropout(0.3)
        self.layers = nn.ModuleList(HATGroup() for _ in range(2))
        strong(self)

    def forward_features(self, x):
        size = (x.shape[2], x.shape[3])
        assert size[0] % WINDOW == size[1] % WINDOW == 0
        x = self.pos_drop(self.patch_embed(x))
        for layer in self.layers:
            x = layer(x, size, {"factor": float(self.relative_position_index_SA[1])})
        return self.norm(x).transpose(1, 2).unflatten(2, size)


class DAT(Network):
    """Takes any size."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.before_RG = nn.Sequential(Tokens(), nn.LayerNorm(CHANNELS))
        self.layers = nn.ModuleList(DATGroup() for _ in range(2))
        strong(self)

    def forward_features(self, x):
        size = [x.shape[2], x.shape[3]]
        x = self.before_RG(x)
        for layer in self.layers:
            x = layer(x, size)
        return self.norm(x).transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize("kind", [HAT, DAT])
@pytest.mark.parametrize("options", [dict(scale=1), dict(scale=4), dict(scale=3, direct=True)], ids=str)
def test_equals_its_forward(kind, options):
    model = kind(**options).to(DEVICE).eval().requires_grad_(False)
    fast = APEForward(model)
    assert fast.scale == options["scale"] and fast.packed.backend == "torch"
    for size in ((8, 8), (4, 12)):
        patches = test_patches(2, *size)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


def test_other_sizes_are_reflected_to_whole_windows():
    model = HAT().to(DEVICE).eval().requires_grad_(False)
    image = test_patches(1, 9, 7)
    padded = nn.functional.pad(image, (0, 1, 0, 3), mode="reflect")
    assert_pictures_close(APEForward(model)(image), model(padded)[:, :, :18, :14])
    dat = DAT().to(DEVICE).eval().requires_grad_(False)
    assert_pictures_close(APEForward(dat)(image), dat(image))


@pytest.mark.parametrize("kind", [HAT, DAT])
def test_evaluation_mode_stays_and_weights_are_followed(kind):
    model = kind().to(DEVICE).train().requires_grad_(False)
    fast, patches = APEForward(model), test_patches(1, 8, 8)
    model.norm.weight.mul_(0.5)
    got = fast.forward_patches(patches)[0]
    assert model.training
    assert_pictures_close(got, model.eval()(patches))


NEAR_MISSES = {
    "no-method": (HAT, edit("forward_features", None), "model.forward_features: expected a method, got none"),
    "position-embedding": (HAT, edit("absolute_pos_embed", nn.Parameter(torch.zeros(1))), "model.absolute_pos_embed: "),
    "no-window": (HAT, edit("window_size", None), "model.window_size: expected a whole number of at least 1, got None"),
    "no-conv-after-body": (HAT, edit("conv_after_body", nn.Identity()), "model.conv_after_body: expected an nn.Conv2d"),
    "extra": (DAT, edit("refine", conv()), "model.refine: expected no such submodule"),
    "no-range": (DAT, remove("img_range"), "model.img_range: expected a number, got NoneType"),
    "other-forward": (
        DAT,
        lambda m: setattr(m, "forward", lambda x: 2 * DAT.forward(m, x)),
        r"model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    kind, change, message = NEAR_MISSES[case]
    model = kind()
    assert_refused(model, change, message)
