"""ECBSR with exits (Zhang et al. 2021; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ape_sr.models.base import ExitNetwork, expect_divisor
from ape_sr.models.edsr import conv3x3

EXPANSION = 2  # channels inside the 1x1-3x3 branch, divided by those of the block
SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class ExpandBranch(nn.Module):
    """1x1 convolution k0, b0 to `EXPANSION` times the width, then 3x3 convolution k1, b1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        expand, conv = (
            nn.Conv2d(in_channels, EXPANSION * out_channels, 1),
            conv3x3(EXPANSION * out_channels, out_channels),
        )
        self.k0, self.b0 = expand.weight, expand.bias
        self.k1, self.b1 = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, h, w]`` to ``[N, C_out, h, w]``."""
        # The input is padded, and not the result of the first convolution: the second one reads b0 around the patch.
        return conv2d(conv2d(pad(x, (1, 1, 1, 1)), self.k0, self.b0), self.k1, self.b1)


class EdgeBranch(nn.Module):
    """1x1 convolution k0, b0, then a fixed 3x3 filter for every channel, times `scale`, plus `bias`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[tuple[float, ...], ...]) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 1)
        self.k0, self.b0 = conv.weight, conv.bias
        self.scale = nn.Parameter(torch.randn(out_channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(out_channels) * 1e-3)
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor(kernel).expand(out_channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, h, w]`` to ``[N, C_out, h, w]``."""
        between = conv2d(pad(x, (1, 1, 1, 1)), self.k0, self.b0)
        return conv2d(between, self.scale * self.mask, self.bias, groups=len(self.mask))


class ECB(nn.Module):
    """Edge-oriented convolution block: the sum of five parallel branches.

    with_idt: adds the input as well, if the block has as many output channels as input channels. linear: no PReLU
    follows.
    """

    def __init__(self, in_channels: int, out_channels: int, with_idt: bool, linear: bool = False) -> None:
        super().__init__()
        self.with_idt = with_idt and in_channels == out_channels
        self.conv3x3 = conv3x3(in_channels, out_channels)
        self.conv1x1_3x3 = ExpandBranch(in_channels, out_channels)
        self.conv1x1_sbx = EdgeBranch(in_channels, out_channels, SOBEL_X)
        self.conv1x1_sby = EdgeBranch(in_channels, out_channels, SOBEL_Y)
        self.conv1x1_lpl = EdgeBranch(in_channels, out_channels, LAPLACIAN)
        if not linear:
            self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, h, w]`` to ``[N, C_out, h, w]``."""
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x) + self.conv1x1_sby(x) + self.conv1x1_lpl(x)
        if self.with_idt:
            y = y + x
        return self.act(y) if hasattr(self, "act") else y


class ECBSR(ExitNetwork):
    """ECBSR, plain or with exits after every `exit_interval` blocks.

    scale: upscaling factor, 2, 3 or 4.
    n_blocks, n_feats: blocks between the first and the last one, and channels (16 x 64 is the paper's large form).
    exit_interval: blocks between exits, a divisor of n_blocks. None builds a plain network without regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    with_idt: whether blocks add their input.
    rgb_range: the largest value of a pixel.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_blocks: int = 16,
        n_feats: int = 64,
        exit_interval: int | None = 2,
        exit_threshold: float = 1.0,
        with_idt: bool = False,
        rgb_range: float = 1.0,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale: expected 2, 3 or 4, got {scale}")
        expect_divisor(exit_interval, "n_blocks", n_blocks)
        self.configure(
            scale=scale,
            n_blocks=n_blocks,
            n_feats=n_feats,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            with_idt=with_idt,
            rgb_range=rgb_range,
        )
        self.upsample = nn.Upsample(scale_factor=scale, mode="bicubic", align_corners=False)
        self.head = nn.Sequential(ECB(3, n_feats, with_idt))
        blocks = [ECB(n_feats, n_feats, with_idt) for _ in range(n_blocks)]
        self.body = nn.Sequential(*blocks, ECB(n_feats, 3 * scale**2, with_idt, linear=True))
        self.tail = nn.Sequential(nn.PixelShuffle(scale))
        self.make_exits(n_feats, exit_interval, exit_threshold)

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        return skip + self.tail(self.body[-1](features))

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The upsampled input, and the feature map at every exit; for a plain network after the last block only."""
        return self.upsample(x), self.after_blocks(list(self.body)[:-1], self.head(x))
