"""The networks that the benchmarks run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ape_sr.models import EDSR, RCAN, VDSR


class Compact(nn.Module):
    """The plain public layout of SRVGGNetCompact: 3x3 convs and PReLUs, nearest skip."""

    def __init__(self, scale: int = 4, feats: int = 64, convs: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, feats, 3, padding=1), nn.PReLU(feats)]
        for _ in range(convs):
            layers += [nn.Conv2d(feats, feats, 3, padding=1), nn.PReLU(feats)]
        self.body = nn.ModuleList([*layers, nn.Conv2d(feats, 3 * scale**2, 3, padding=1)])
        self.upscale = scale
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, h, w]`` to ``[N, 3, s * h, s * w]``."""
        out = x
        for layer in self.body:
            out = layer(out)
        return self.upsampler(out) + nn.functional.interpolate(x, scale_factor=self.upscale, mode="nearest")


# name: the network, and the share of `--patches` that one call runs, so that no call takes too long
NETWORKS = {
    "EDSR 16x64 x4": (lambda: EDSR(scale=4, n_resblocks=16, n_feats=64, exit_interval=2), 1),
    "RCAN 2x20x64 x4": (lambda: RCAN(scale=4, n_resgroups=2, n_resblocks=20, n_feats=64), 1 / 4),
    "VDSR 20x64 x2": (lambda: VDSR(scale=2, n_resblocks=20, n_feats=64), 1 / 8),
    "Compact 16x64 x4": (Compact, 1 / 2),
    "EDSR 32x256 x4": (lambda: EDSR(scale=4, n_resblocks=32, n_feats=256, exit_interval=4), 1 / 32),
}


def make(name: str) -> tuple[nn.Module, float]:
    """The network in evaluation mode, with random weights, and its share of the patches."""
    torch.manual_seed(0)
    build, share = NETWORKS[name]
    return build().eval().requires_grad_(False), share
