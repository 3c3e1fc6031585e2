"""SRVGGNetCompact of Real-ESRGAN with exits (Wang et al. 2021; exits after Wang et al., ECCV 2022)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import interpolate

from ape_sr.models.base import ExitNetwork, expect_divisor
from ape_sr.models.edsr import conv3x3


class SRVGGNetCompact(ExitNetwork):
    """A chain of convolutions and PReLUs at low resolution, plain or with exits every `exit_interval` convolutions.

    scale: upscaling factor, 1, 2, 3, 4 or 8.
    n_resblocks, n_feats: convolutions between the first and the last one, and channels (16 x 64 is
        realesr-animevideov3).
    exit_interval: convolutions between exits, a divisor of n_resblocks. None builds a plain network without
        regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    rgb_range: the largest value of a pixel, 1.0 in the published checkpoints.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_resblocks: int = 16,
        n_feats: int = 64,
        exit_interval: int | None = 2,
        exit_threshold: float = 1.0,
        rgb_range: float = 1.0,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 3, 4, 8):
            raise ValueError(f"scale: expected 1, 2, 3, 4 or 8, got {scale}")
        if n_resblocks < 1:
            raise ValueError(f"n_resblocks: expected at least 1, got {n_resblocks}")
        expect_divisor(exit_interval, "n_resblocks", n_resblocks)
        self.configure(
            scale=scale,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            rgb_range=rgb_range,
        )
        layers: list[nn.Module] = []
        for channels in (3, *[n_feats] * n_resblocks):
            layers += [conv3x3(channels, n_feats), nn.PReLU(n_feats)]
        self.body = nn.ModuleList([*layers, conv3x3(n_feats, 3 * scale**2)])
        self.upsampler = nn.PixelShuffle(scale)
        self.make_exits(n_feats, exit_interval, exit_threshold)

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        return skip + self.upsampler(self.body[-1](features))

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The input, upsampled to the nearest pixel, and the feature map at every exit.

        A plain network gives the last feature map.
        """
        first, *blocks = (partial(self._activated, i) for i in range(0, len(self.body) - 1, 2))
        return interpolate(x, scale_factor=self.scale, mode="nearest"), self.after_blocks(blocks, first(x))

    def _activated(self, i: int, x: Tensor) -> Tensor:
        """Convolution `i` of the body and the PReLU after it."""
        return self.body[i + 1](self.body[i](x))
