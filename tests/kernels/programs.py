"""Patch programs that no network makes."""

import math

import torch
from support import DEVICE

from ape_kernels.collapse import CollapsedTail
from ape_kernels.program import (
    Activation,
    Buffer,
    ChannelAttention,
    Conv,
    Exit,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Upsample,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5).to(DEVICE)


def mixed_program(wide: int = 80) -> PatchProgram:
    """What no family has together: kernels of 1, 3 and 5 taps, many channels, every step, other resolutions."""
    tail = CollapsedTail(random(4, 4, 12, wide, 5, 5) * 4, random(4, 4, 12))
    return PatchProgram(
        buffers=(Buffer(3), Buffer(19), Buffer(wide), Buffer(33), Buffer(33, 2), Buffer(wide), Buffer(3, 2)),
        head=(
            Conv(0, 1, random(19, 3, 5, 5), random(19), Activation.RELU, scale=0.7),
            Conv(1, 2, random(wide, 19, 1, 1), None, Activation.PRELU, slope=random(wide)),
            Upsample(0, 6, Interpolation.BICUBIC),
        ),
        stages=(
            Stage(
                2,
                5,
                (
                    Conv(2, 1, random(19, wide, 1, 1), random(19)),
                    Conv((1, 2), 3, random(33, 19 + wide, 3, 3), random(33), Activation.RELU),
                    Upsample(3, 4, Interpolation.NEAREST),
                    Conv((3, 2, 1), 5, random(wide, 52 + wide, 3, 3), random(wide), scale=1.5, add=2),
                    ChannelAttention(5, 5, random(5, wide), random(5), random(wide, 5), random(wide), 2.0, add=2),
                    Exit(5, random(wide), torch.tensor([0.1], device=DEVICE)),
                ),
            ),
        ),
        tail=(Reconstruct(5, tail, 2, add=6),),
    )
