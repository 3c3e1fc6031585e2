"""How wide the ring around active cells must be for one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ape_kernels.backends.protocol import Depths
from ape_kernels.packed import Packed
from ape_kernels.plan.fit import MEASURE, ExitFit
from ape_kernels.plan.plan import make_plan
from ape_kernels.run.images import run_image

RINGS = 4, 8, 16  # pixels; those of more than half a cell are not tried
ABOVE = 8.0  # dB: how far above what is asked for the cells at full depth are to be
NEARLY = 1.0  # dB: a wider ring that brings less is not worth its work
SAMPLES = 6  # pictures
SIDE = 4 * MEASURE  # low-resolution pixels of a sample


def sample_of(image: Tensor) -> Tensor:
    """The middle of an image ``[C, H, W]``, ``[1, C, h, w]`` with sides of at most SIDE pixels."""
    top, left = (max(0, (side - SIDE) // 2) for side in image.shape[1:])
    return image[None, :, top : top + SIDE, left : left + SIDE].clone()


def measure_ring(fit: ExitFit, packed: Packed, samples: Sequence[Tensor]) -> int:
    """The narrowest ring that leaves cells at full depth ABOVE what the fit's default asks for, beside others.

    Where none does, because what is left of their distance to the model's own picture is not the ring's, the narrowest
    that is within NEARLY of the widest. packed: for whole images. samples: float32 ``[1, C, h, w]``, on its device.
    """
    rings = [ring for ring in RINGS if 2 * ring <= fit.cell] or [fit.cell // 2]
    reached = {ring: _fidelity(replace(fit, ring=ring), packed, samples) for ring in rings}
    wanted = min(fit.default + ABOVE, reached[rings[-1]] - NEARLY)
    return next(ring for ring in rings if reached[ring] >= wanted)


def _fidelity(fit: ExitFit, packed: Packed, samples: Sequence[Tensor]) -> float:
    """In dB, of the cells at full depth in plans for the fit's default; infinite where there are none."""
    total, count = 0.0, 0
    for image in samples:
        plan = make_plan(fit, packed.program, image, fit.default, packed.backend)
        depths = Depths(plan.exit_at, fit.cell, fit.ring)
        pictures = [run_image(image, packed, each, fit.colours(image)) for each in (depths, Depths(None, fit.cell, 0))]
        ours, full = ((picture / fit.value_range).clamp(0, 1) for picture in pictures)
        squares = (ours - full).square().mean(1)[0]
        side = fit.cell * fit.scale
        deepest = (plan.exit_at[0] == fit.stages - 1).repeat_interleave(side, 0).repeat_interleave(side, 1)
        at_full_depth = squares[deepest[: squares.shape[0], : squares.shape[1]]].double()
        total, count = total + float(at_full_depth.sum()), count + at_full_depth.numel()
    return -10 * float(torch.tensor(total / count, device="cpu").log10()) if total > 0 else float("inf")
