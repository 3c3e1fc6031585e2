"""VDSR with exits (Kim et al. 2016; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from ape_sr.models.base import ExitNetwork, expect_divisor
from ape_sr.models.edsr import MeanShift, conv3x3


class VDSR(ExitNetwork):
    """VDSR, plain or with exits: bicubic upsampling, then a chain of convolutions at the resolution of the picture.

    scale: upscaling factor, 2, 3 or 4.
    n_resblocks, n_feats: convolutions, with the first and the last one, and channels (20 x 64 is the paper's form).
    exit_interval: convolutions between exits, a divisor of n_resblocks - 2. None builds a plain network without
        regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    rgb_range: the largest value of a pixel: 1.0 here, 255 in the published code.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_resblocks: int = 20,
        n_feats: int = 64,
        exit_interval: int | None = 2,
        exit_threshold: float = 1.0,
        rgb_range: float = 1.0,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale: expected 2, 3 or 4, got {scale}")
        if n_resblocks < 3:
            raise ValueError(f"n_resblocks: expected at least 3, got {n_resblocks}")
        between = n_resblocks - 2
        expect_divisor(exit_interval, "n_resblocks - 2", between)
        self.configure(
            scale=scale,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            rgb_range=rgb_range,
        )
        self.upsample = nn.Upsample(scale_factor=scale, mode="bicubic", align_corners=False)
        self.sub_mean = MeanShift(rgb_range, sign=-1)
        self.add_mean = MeanShift(rgb_range, sign=1)
        widths = [3, *[n_feats] * between]
        layers = [nn.Sequential(conv3x3(w, n_feats), nn.ReLU(inplace=True)) for w in widths]
        self.body = nn.Sequential(*layers, nn.Sequential(conv3x3(n_feats, 3)))
        self.make_exits(n_feats, exit_interval, exit_threshold)

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        return self.add_mean(skip + self.body[-1](features))

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The upsampled input without its mean, and the feature map at every exit; for a plain network the last one."""
        skip = self.sub_mean(self.upsample(x))
        first, *blocks, _ = self.body
        return skip, self.after_blocks(blocks, first(skip))
