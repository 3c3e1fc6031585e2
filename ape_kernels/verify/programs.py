"""Programs with every kind of step, as signatures, for ``python -m ape_kernels verify``.

Each program is small and resembles that of one kind of network. Together they have every step, activation and
interpolation, several sources, both kinds of reconstruction, and channels below, at and above the kernels' tiles.
"""

from __future__ import annotations

from ape_kernels.program import Activation, Interpolation
from ape_kernels.verify.signature import Json, attention, conv, exit_step, reconstruct, upsample

RELU, PRELU = Activation.RELU, Activation.PRELU


def residual(channels: int, blocks: int, upscale: int, scale: float = 1.0) -> Json:
    """Residual blocks of two convolutions, exits, and one kernel per pair of border classes."""
    pixels = 3 * upscale**2
    block = [
        conv([2], 3, channels, channels, 3, RELU),
        conv([3], 2, channels, channels, 3, scale=scale, add=2),
    ]
    first = [conv([1], 3, channels, channels, 3, RELU), conv([3], 2, channels, channels, 3, scale=scale, add=1)]
    return {
        "buffers": [[3, 1], *[[channels, 1]] * 3],
        "head": [conv([0], 1, 3, channels, 3)],
        "stages": [
            {"src": 2 if i else 1, "dst": 2, "steps": [*(block if i else first), exit_step(2, channels)]}
            for i in range(blocks)
        ],
        "tail": [conv([2], 3, channels, channels, 3, add=1), reconstruct(3, channels, pixels, 5, 4, upscale)],
    }


def channel_attention() -> Json:
    """Residual groups of blocks that end in channel attention."""
    group = [
        step
        for src in (2, 3)
        for step in (
            conv([src], 4, 64, 64, 3, RELU),
            conv([4], 5, 64, 64, 3),
            attention(5, 3, 64, 4, add=src),
        )
    ]
    stage: Json = {"src": 2, "dst": 2, "steps": [*group, conv([3], 4, 64, 64, 3), conv([4], 2, 64, 64, 1, add=2)]}
    stage["steps"].append(exit_step(2, 64))
    copy = {"src": 1, "dst": 2, "steps": [upsample(1, 2, Interpolation.NEAREST), exit_step(2, 64)]}
    return {
        "buffers": [[3, 1], *[[64, 1]] * 5],
        "head": [conv([0], 1, 3, 64, 3)],
        "stages": [copy, stage, stage],
        "tail": [conv([2], 3, 64, 64, 3, add=1), reconstruct(3, 64, 12, 5, 4, 2)],
    }


def dense() -> Json:
    """Dense blocks with many sources, leaky activations, and a tail that upsamples twice before its last steps."""
    grown = [conv([2, *range(3, 3 + i)], 3 + i, 64 + 32 * i, 32, 3, PRELU) for i in range(4)]
    stage: Json = {"src": 2, "dst": 2, "steps": [*grown, conv([2, 3, 4, 5, 6], 7, 192, 64, 3, scale=0.2, add=2)]}
    stage["steps"] += [upsample(7, 2, Interpolation.NEAREST), exit_step(2, 64)]
    return {
        "buffers": [[3, 1], [64, 1], [64, 1], *[[32, 1]] * 4, [64, 1], *[[64, 2]] * 2, *[[64, 4]] * 2],
        "head": [conv([0], 1, 3, 64, 3), upsample(1, 2, Interpolation.NEAREST)],
        "stages": [stage, stage, stage],
        "tail": [
            conv([2], 7, 64, 64, 3, add=1),
            upsample(7, 8, Interpolation.NEAREST),
            conv([8], 9, 64, 64, 3, PRELU),
            upsample(9, 10, Interpolation.NEAREST),
            conv([10], 11, 64, 64, 3, PRELU),
            reconstruct(11, 64, 3, 3, 1, 1),
        ],
    }


def high_resolution() -> Json:
    """Bicubic upsampling first, then convolutions at the picture's size, then the addition of the upsampled image."""
    stage: Json = {"src": 2, "dst": 2, "steps": [conv([2], 3, 64, 64, 3, RELU), conv([3], 2, 64, 64, 3, RELU)]}
    stage["steps"].append(exit_step(2, 64))
    return {
        "buffers": [[3, 1], [3, 2], [64, 2], [64, 2]],
        "head": [upsample(0, 1, Interpolation.BICUBIC), conv([1], 2, 3, 64, 3, RELU)],
        "stages": [stage, stage, stage],
        "tail": [reconstruct(2, 64, 3, 3, 1, 1, add=1)],
    }


def parametric() -> Json:
    """A chain of convolutions with PReLU and few, odd numbers of channels. Pixels are added at the end. No exits."""
    body = [
        conv([1], 2, 20, 20, 3, PRELU),
        conv([2], 1, 20, 20, 3, PRELU),
        conv([1], 2, 20, 20, 5, PRELU, scale=0.5, add=1),
    ]
    return {
        "buffers": [[3, 1], [20, 1], [20, 1], [3, 3]],
        "head": [upsample(0, 3, Interpolation.BICUBIC), conv([0], 1, 3, 20, 3, PRELU)],
        "stages": [{"src": 1, "dst": 2, "steps": body}],
        "tail": [reconstruct(2, 20, 27, 3, 1, 3, add=3)],
    }


PROGRAMS = {
    "residual, 64 channels": residual(64, 4, 4),
    "residual, 128 channels": residual(128, 3, 3, scale=0.1),
    "channel attention": channel_attention(),
    "dense": dense(),
    "high resolution": high_resolution(),
    "parametric": parametric(),
}
