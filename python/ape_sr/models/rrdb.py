"""RRDBNet of ESRGAN with exits (Wang et al. 2018; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_unshuffle

from ape_sr.models.base import ExitNetwork
from ape_sr.models.edsr import conv3x3

RESIDUAL_SCALE = 0.2
SLOPE = 0.2


class ResidualDenseBlock(nn.Module):
    """Five convolutions: ``x + 0.2 * conv5``. Each reads the input of the block and the maps of those before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (conv3x3(channels + i * growth, growth) for i in range(4))
        self.conv5 = conv3x3(channels + 4 * growth, channels)
        self.lrelu = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        maps = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            maps.append(self.lrelu(conv(torch.cat(maps, dim=1))))
        return x + RESIDUAL_SCALE * self.conv5(torch.cat(maps, dim=1))


class RRDB(nn.Module):
    """Three dense blocks in a row: ``x + 0.2 * rdb3(rdb2(rdb1(x)))`` over ``[N, C, h, w]``."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(channels, growth)
        self.rdb2 = ResidualDenseBlock(channels, growth)
        self.rdb3 = ResidualDenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class Tail(nn.Module):
    """Features ``[N, C, h, w]`` to pixels ``[N, 3, H, W]``: nearest upsampling and convolution, `doublings` times."""

    def __init__(self, channels: int, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        for i in range(doublings):
            self.add_module(f"conv_up{i + 1}", conv3x3(channels, channels))
        self.conv_hr = conv3x3(channels, channels)
        self.conv_last = conv3x3(channels, 3)
        self.lrelu = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for i in range(self.doublings):
            conv = self.get_submodule(f"conv_up{i + 1}")
            x = self.lrelu(conv(interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(x)))


class RRDBNet(ExitNetwork):
    """RRDBNet, plain or with exits after every `exit_interval` blocks and after the last.

    scale: upscaling factor, 1, 2, 4 or 8.
    n_resblocks, n_feats, n_growth: blocks, channels, and channels that each convolution of a dense block adds.
    exit_interval: blocks between exits, at most n_resblocks. None builds a plain network without regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    rgb_range: the largest value of a pixel, 1.0 in the published checkpoints.
    fold: 1, 2 or 4. Squares of fold x fold pixels are folded into channels first, and the features are then upsampled
        by scale * fold. The sides of images must be multiples of it.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_resblocks: int = 23,
        n_feats: int = 64,
        n_growth: int = 32,
        exit_interval: int | None = 4,
        exit_threshold: float = 1.0,
        rgb_range: float = 1.0,
        fold: int = 1,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4, 8):
            raise ValueError(f"scale: expected 1, 2, 4 or 8, got {scale}")
        if fold not in (1, 2, 4):
            raise ValueError(f"fold: expected 1, 2 or 4, got {fold}")
        if exit_interval is not None and not 1 <= exit_interval <= n_resblocks:
            raise ValueError(f"exit_interval: expected 1 to n_resblocks = {n_resblocks}, got {exit_interval}")
        self.configure(
            scale=scale,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            n_growth=n_growth,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            rgb_range=rgb_range,
            fold=fold,
        )
        self.fold = fold
        self.head = nn.Sequential(conv3x3(3 * fold**2, n_feats))
        blocks = [RRDB(n_feats, n_growth) for _ in range(n_resblocks)]
        self.body = nn.Sequential(*blocks, conv3x3(n_feats, n_feats))
        self.tail = Tail(n_feats, (scale * fold).bit_length() - 1)
        self.make_exits(n_feats, exit_interval, exit_threshold)

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        return self.reconstruct(skip + self.body[-1](features))

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features of the head, and the feature map at every exit. A plain network gives the last feature map."""
        skip = self.head(pixel_unshuffle(x, self.fold))
        return skip, self.after_blocks(list(self.body)[:-1], skip)

    def reconstruct(self, features: Tensor) -> Tensor:
        """The picture of features ``[N, C, h, w]`` to which the skip has been added."""
        return self.tail(features)
