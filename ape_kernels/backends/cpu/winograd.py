"""Weights of the Winograd convolutions F(4x4, 3x3) and F(2x2, 5x5). csrc/cpu/winograd.h says how they are used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # the sixth point is infinity


def transform(taps: Tensor) -> Tensor:
    """``G g G'`` of kernels g. taps: ``[..., k * k, M]``, M kernels, k 3 or 5. Returns float64 ``[..., 36, M]``."""
    matrix = _matrix(math.isqrt(taps.shape[-2]))
    return torch.kron(matrix, matrix) @ taps.double()


def _matrix(kernel: int) -> Tensor:
    """G, ``[6, k]``: the kernel as a polynomial at each point, divided by the distances to all other points."""
    rows = []
    for i, point in enumerate(POINTS):
        distance = 1.0
        for j, other in enumerate(POINTS):
            distance *= point - other if i != j else 1.0
        rows.append([point**power / distance for power in range(kernel)])
    return torch.tensor([*rows, [0.0] * (kernel - 1) + [1.0]], dtype=torch.float64, device="cpu")
