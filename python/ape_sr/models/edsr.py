"""EDSR with exits (Lim et al. 2017; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ape_sr.models.base import ExitNetwork, expect_divisor

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # DIV2K, as published with EDSR


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class MeanShift(nn.Conv2d):
    """Adds ``sign * rgb_range * RGB_MEAN`` as a frozen 1x1 convolution."""

    def __init__(self, rgb_range: float, sign: int) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            assert self.bias is not None
            self.bias.copy_(sign * rgb_range * torch.tensor(RGB_MEAN))
        self.requires_grad_(False)


class ResBlock(nn.Module):
    """``x + res_scale * conv(relu(conv(x)))`` over ``[N, C, h, w]``."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(inplace=True), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same."""
        return torch.add(x, self.body(x), alpha=self.res_scale)  # reads and writes memory once


class Upsampler(nn.Sequential):
    """Convolution and pixel shuffle: once for scale 3, log2(scale) times for powers of two."""

    def __init__(self, scale: int, channels: int) -> None:
        if scale not in (1, 2, 3, 4, 8):
            raise ValueError(f"scale: expected 1, 2, 3, 4 or 8, got {scale}")
        factors = [3] if scale == 3 else [2] * int(math.log2(scale))
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [conv3x3(channels, factor * factor * channels), nn.PixelShuffle(factor)]
        super().__init__(*layers)


class EDSR(ExitNetwork):
    """EDSR, plain or with exits after every `exit_interval` residual blocks.

    scale: upscaling factor, 1, 2, 3, 4 or 8.
    n_resblocks, n_feats: residual blocks and channels (16 x 64 is the paper's small form, 32 x 256 the large one).
    exit_interval: blocks between exits, a divisor of n_resblocks. None builds a plain network without regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    res_scale: factor of the residual blocks.
    rgb_range: the largest value of a pixel: 1.0 here, 255 in the published checkpoints.
    head_exit: a patch may also leave before the first block, which needs a regressor that looks ahead. Exit 0 is then
        the one after the head. The head is linear, so the regressor knows only the mean colour of the patch there.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_resblocks: int = 16,
        n_feats: int = 64,
        exit_interval: int | None = 2,
        exit_threshold: float = 1.0,
        res_scale: float = 1.0,
        rgb_range: float = 1.0,
        head_exit: bool = False,
    ) -> None:
        super().__init__()
        if head_exit and exit_interval is None:
            raise ValueError("head_exit: expected with an exit_interval, got a plain network")
        expect_divisor(exit_interval, "n_resblocks", n_resblocks)
        self.configure(
            scale=scale,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            res_scale=res_scale,
            rgb_range=rgb_range,
            head_exit=head_exit,
        )
        self.head_exit = head_exit
        self.sub_mean = MeanShift(rgb_range, sign=-1)
        self.add_mean = MeanShift(rgb_range, sign=1)
        self.head = nn.Sequential(conv3x3(3, n_feats))
        blocks = [ResBlock(n_feats, res_scale) for _ in range(n_resblocks)]
        self.body = nn.Sequential(*blocks, conv3x3(n_feats, n_feats))
        self.tail = nn.Sequential(Upsampler(scale, n_feats), conv3x3(n_feats, 3))
        self.make_exits(n_feats, exit_interval, exit_threshold)

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        return self.reconstruct(skip + self.body[-1](features))

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The head's features, and the feature map at every exit; for a plain network after the last block only."""
        skip = self.head(self.sub_mean(x))
        features = self.after_blocks(list(self.body)[:-1], skip)
        return skip, [skip, *features] if self.head_exit else features

    def reconstruct(self, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of features ``[N, C, h, w]`` after the global skip."""
        return self.add_mean(self.tail(features))
