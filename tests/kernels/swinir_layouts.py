"""A small SwinIR, and the layouts it is published in, each with its own forward."""

import torch
from families import randomise, spread_regressor
from support import DEVICE, test_patches
from torch import nn
from torch.nn.functional import interpolate

from ape_sr.models import SwinIR
from ape_sr.models.edsr import Upsampler
from ape_sr.models.swinir import RSTB, PatchEmbed, PatchUnEmbed

CHANNELS, WINDOW = 12, 4


def conv(in_channels: int = CHANNELS, out_channels: int = CHANNELS, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def strong(model: nn.Module) -> nn.Module:
    """Weights with which attention, position bias and norms all show in the picture."""
    randomise(model, gain=1.5)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
        elif "bias_table" in name or "qkv.weight" in name:
            parameter.mul_(2)
    return model.to(DEVICE)


def network(scale: int = 2, groups: int = 3, exit_interval: int | None = 1, window_size: int = WINDOW) -> SwinIR:
    model = SwinIR(scale, CHANNELS, (2,) * groups, (2, 3, 4)[:groups], window_size, 2.0, 8, exit_interval)
    strong(model)
    if exit_interval is not None:
        patches = test_patches(64, 8, 8, seed=2)
        spread_regressor(model, model.exit_features(patches)[1], patches)
    return model


class DropPath(nn.Module):
    """What a published network drops while it is trained, groups above all."""

    def forward(self, x):
        return torch.zeros_like(x) if self.training else x


class BasicSR(nn.Module):
    """The published class: a forward by upsampler; no padding of its own; no regressor."""

    def __init__(
        self,
        upsampler: str = "pixelshuffle",
        upscale: int = 4,
        img_range: float = 1.0,
        three_convs: bool = False,
        patch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.upsampler, self.upscale, self.img_range = upsampler, upscale, img_range
        self.mean = torch.tensor((0.4488, 0.4371, 0.4040), device=DEVICE).view(1, 3, 1, 1)
        self.conv_first = conv(3)
        self.patch_embed, self.patch_unembed = PatchEmbed(CHANNELS, norm=patch_norm), PatchUnEmbed()
        self.pos_drop = nn.Dropout(0.3)
        self.layers = nn.ModuleList(
            RSTB(CHANNELS, 2, 3, WINDOW, 2.0, "3conv" if three_convs else "1conv") for _ in range(2)
        )
        for layer in self.layers:
            for block in layer.residual_group.blocks:
                block.mlp = nn.Sequential(block.mlp, DropPath())
        self.norm = nn.LayerNorm(CHANNELS)
        self.conv_after_body = conv()
        if three_convs:
            self.conv_after_body = nn.Sequential(
                conv(CHANNELS, 3), nn.LeakyReLU(0.2, True), conv(3, 3, 1), nn.LeakyReLU(0.2, True), conv(3, CHANNELS)
            )
        if upsampler in ("pixelshuffle", "nearest+conv"):
            self.conv_before_upsample = nn.Sequential(conv(CHANNELS, 8), nn.LeakyReLU(inplace=True))
        if upsampler == "pixelshuffle":
            self.upsample, self.conv_last = Upsampler(upscale, 8), conv(8, 3)
        elif upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(CHANNELS, 3 * upscale**2), nn.PixelShuffle(upscale))
        elif upsampler == "nearest+conv":
            for i in range(upscale.bit_length() - 1):
                self.add_module(f"conv_up{i + 1}", conv(8, 8))
            self.conv_hr, self.conv_last, self.lrelu = conv(8, 8), conv(8, 3), nn.LeakyReLU(0.2, inplace=True)
        else:
            self.conv_last = conv(CHANNELS, 3)
        strong(self)

    def forward_features(self, x):
        x_size = (x.shape[2], x.shape[3])
        x = self.pos_drop(self.patch_embed(x))
        for layer in self.layers:
            x = layer(x, x_size)
        return self.patch_unembed(self.norm(x), x_size)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        x = (x - self.mean) * self.img_range
        first = self.conv_first(x)
        features = self.conv_after_body(self.forward_features(first)) + first
        if self.upsampler == "pixelshuffle":
            x = self.conv_last(self.upsample(self.conv_before_upsample(features)))
        elif self.upsampler == "pixelshuffledirect":
            x = self.upsample(features)
        elif self.upsampler == "nearest+conv":
            features = self.conv_before_upsample(features)
            for i in range(self.upscale.bit_length() - 1):
                features = getattr(self, f"conv_up{i + 1}")(interpolate(features, scale_factor=2, mode="nearest"))
                features = self.lrelu(features)
            x = self.conv_last(self.lrelu(self.conv_hr(features)))
        else:
            x = x + self.conv_last(features)
        return x / self.img_range + self.mean


class AuthorsSwinIR(nn.Module):
    """The authors' class in its training mode: all pictures, the regressor over tokens."""

    def __init__(self) -> None:
        super().__init__()
        ours = network()
        for name, child in ours.named_children():
            self.add_module(name, child)
        self.mean, self.img_range, self.upsampler = ours.mean, 1.0, "pixelshuffle"
        self.exit_interval, self.exit_threshold = 2, 0.5

    def forward(self, x):
        x = self.conv_first((x - self.mean) * self.img_range)
        size, pictures, predictions = (x.shape[2], x.shape[3]), [], []
        feat = self.patch_embed(x)
        for i, layer in enumerate(self.layers, start=1):
            feat = layer(feat, size)
            if i % self.exit_interval == 0:
                body = self.conv_after_body(self.patch_unembed(self.norm(feat), size)) + x
                sr = self.conv_last(self.upsample(self.conv_before_upsample(body)))
                pictures.append(sr / self.img_range + self.mean)
                predictions.append(self.regressor(feat.permute(0, 2, 1)))
        return pictures, predictions
