"""Tile configurations: a short fixed table, and a search if the user asks for one.

A configuration depends on the network's channels, the dtype and the device. It never depends on the number of patches,
because the result of a patch must not depend on the other patches of the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it too, when kernels are defined


@dataclass(frozen=True)
class Config:
    """Tiles of the main convolution: bm pixels times bn output channels, bk input channels per iteration.

    warps: of a Triton program. pipeline: depth of the software pipeline (Triton's num_stages). cache: modifier of the
    pixel loads (".ca" lets L1 serve the nine taps). swap: multiply weights by pixels instead of pixels by weights.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    pipeline: int
    cache: str
    swap: bool


def shipped(channels: int, dtype: torch.dtype, capability: tuple[int, int]) -> Config:
    """The fixed configuration for a body of `channels` channels (padded: 16, 32 or a multiple of 64)."""
    narrow = min(channels, 64)
    if INTERPRETED:
        return Config(256, narrow, narrow, 4, 1, "", False)
    if dtype == torch.float32:
        return Config(64, narrow, min(narrow, 32), 8, 2, "", False)
    if dtype == torch.bfloat16:  # its feature maps are float32 and take twice the shared memory
        return Config(128, narrow, min(narrow, 32), 8, 2, ".ca", False)
    if channels % 128 == 0:
        return Config(128, 128, 64, 8, 3, ".ca", False)
    if narrow < 64:
        return Config(256, narrow, narrow, 8, 3, ".ca", False)
    wide_k = capability[0] in (9, 10)  # wgmma and tcgen05 take 64 channels at once; mma.sync would spill registers
    return Config(256, 64, 64 if wide_k else 32, 8, 3, ".ca", True)


def shipped_for_images(config: Config, capability: tuple[int, int]) -> tuple[Config, int]:
    """The configuration for whole images in place of the one for patches, and the most registers of a thread.

    On an H200, tiles of half as many pixels, two or three of them on a multiprocessor, take 6.8 instead of 9.1 ms for
    EDSR 16x64 and a picture of 960x540 (bench/results/h200). Of a patch they would read more weights.
    """
    if capability[0] == 9 and (config.bm, config.bn, config.bk, config.warps) == (256, 64, 64, 8):
        return replace(config, bm=128, warps=4), 168
    return config, 255


def candidates(channels: int, dtype: torch.dtype) -> Iterator[Config]:
    """The configurations that `APE_TRITON_AUTOTUNE=1` tries."""
    narrow = min(channels, 64)
    wide = 128 if channels % 128 == 0 else narrow
    for bm in (64, 128, 256):
        for bn in sorted({narrow, wide}):
            for warps in (4, 8):
                for pipeline in (2, 3, 4):
                    for cache in ("", ".ca"):
                        for swap in (False, True) if dtype != torch.float32 else (False,):
                            yield Config(bm, bn, min(narrow, 64), warps, pipeline, cache, swap)


_TUNED: dict[tuple[int, torch.dtype, tuple[int, int]], Config] = {}


def choose(
    channels: int, dtype: torch.dtype, capability: tuple[int, int], seconds: Callable[[Config], float] | None = None
) -> Config:
    """The configuration to run with.

    seconds: measures a configuration on the current call: infinity if it does not fit the device. It is called with
    ``APE_TRITON_AUTOTUNE=1`` only, and then once per (channels, dtype, capability) and process. Without it, the result
    is the configuration that an earlier search found, or the fixed one.
    """
    key = (channels, dtype, capability)
    if seconds is not None and os.environ.get("APE_TRITON_AUTOTUNE") == "1" and key not in _TUNED:
        _TUNED[key] = min(candidates(channels, dtype), key=seconds)
    return _TUNED.get(key) or shipped(channels, dtype, capability)
