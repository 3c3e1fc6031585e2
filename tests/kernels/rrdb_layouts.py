"""RRDBNet as others lay it out: small modules with their attribute names and their forward."""

import torch
from families import randomise, spread_regressor
from support import DEVICE, test_patches
from torch import nn
from torch.nn.functional import interpolate, pixel_unshuffle

from ape_sr.models import RRDBNet


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
