"""RCAN with exits (Zhang et al. 2018; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from ape_sr.models.base import expect_divisor
from ape_sr.models.edsr import EDSR, conv3x3


class CALayer(nn.Module):
    """``x * gate(mean over pixels of x)`` over ``[N, C, h, w]``. The gate has a hidden layer of `hidden` channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same."""
        return x * self.conv_du(self.avg_pool(x))


class RCAB(nn.Module):
    """``x + attention(conv(relu(conv(x))))`` over ``[N, C, h, w]``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels),
            nn.ReLU(inplace=True),
            conv3x3(channels, channels),
            CALayer(channels, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same."""
        return x + self.body(x)


class ResidualGroup(nn.Module):
    """``x + conv(blocks(x))`` over ``[N, C, h, w]``."""

    def __init__(self, blocks: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(RCAB(channels, hidden) for _ in range(blocks)), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same."""
        return x + self.body(x)


class RCAN(EDSR):
    """RCAN, plain or with exits after every `exit_interval` residual groups. Head and tail are those of EDSR.

    scale: upscaling factor, 1, 2, 3, 4 or 8.
    n_resgroups, n_resblocks, n_feats: groups, blocks per group, channels (the paper's: 10, 20, 64).
    reduction: channels divided by the hidden channels of the channel attention, 1 to n_feats.
    exit_interval: groups between exits, a divisor of n_resgroups. None builds a plain network without regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    rgb_range: the largest value of a pixel: 1.0 here, 255 in the published checkpoints.
    head_exit: a patch may also leave before the first group, as in `EDSR`.

    `forward` and `forward_exits` are as in `EDSR`. Raises ValueError for arguments outside these ranges.
    """

    def __init__(
        self,
        scale: int = 4,
        n_resgroups: int = 10,
        n_resblocks: int = 20,
        n_feats: int = 64,
        reduction: int = 16,
        exit_interval: int | None = 1,
        exit_threshold: float = 1.0,
        rgb_range: float = 1.0,
        head_exit: bool = False,
    ) -> None:
        expect_divisor(exit_interval, "n_resgroups", n_resgroups)
        if not 1 <= reduction <= n_feats:
            raise ValueError(f"reduction: expected 1 to n_feats = {n_feats}, got {reduction}")
        super().__init__(scale, 0, n_feats, exit_interval, exit_threshold, rgb_range=rgb_range, head_exit=head_exit)
        hidden = n_feats // reduction
        groups = [ResidualGroup(n_resblocks, n_feats, hidden) for _ in range(n_resgroups)]
        self.body = nn.Sequential(*groups, conv3x3(n_feats, n_feats))
        self.configure(
            scale=scale,
            n_resgroups=n_resgroups,
            n_resblocks=n_resblocks,
            n_feats=n_feats,
            reduction=reduction,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            rgb_range=rgb_range,
            head_exit=head_exit,
        )
