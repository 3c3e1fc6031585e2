"""Exact collapse of a linear tail into one convolution per border class.

An EDSR-like tail (convolutions and pixel shuffles, no activation) is an affine map, so it equals
one 5x5 convolution at low resolution followed by one pixel shuffle. The zero padding *inside* the
tail only reaches the outermost ring of low-resolution pixels, so each axis knows four kinds of
position and a pair of them picks the kernel:

    INTERIOR  anything else          FIRST  row (column) 0
    LAST      row (column) n - 1     ONLY   n == 1, first and last at once

A tail of scale 4 and 64 channels costs 1.53 MFLOP a low-resolution pixel as written and 0.15
collapsed; the result differs by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

INTERIOR, FIRST, LAST, ONLY = range(4)
RADIUS = 2  # a chain of 3x3 convs with upsampling between them never reaches further

TailFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CollapsedTail:
    """Kernels of a collapsed tail, indexed by the border class of the row, then of the column.

    kernel: ``[4, 4, O * s * s, C, 5, 5]``, output channels in ``F.pixel_shuffle`` order.
    bias: ``[4, 4, O * s * s]``.
    """

    kernel: Tensor
    bias: Tensor


def collapse_tail(tail: TailFunction, channels: int, out_channels: int, scale: int) -> CollapsedTail:
    """Collapse `tail` exactly, border classes included, in float64.

    tail: affine map ``[N, channels, h, w] -> [N, out_channels, scale * h, scale * w]`` in float64,
    built from 1x1 and zero-padded 3x3 convolutions and pixel shuffles only.
    """
    phases = out_channels * scale * scale
    size = 2 * RADIUS + 1
    axis_of_size = {size: {INTERIOR: RADIUS, FIRST: 0, LAST: size - 1}, 1: {ONLY: 0}}
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        kernel = torch.zeros(4, 4, phases, channels, size, size, dtype=torch.float64)
        bias = torch.zeros(4, 4, phases, dtype=torch.float64)
        for (height, rows), (width, columns) in product(axis_of_size.items(), repeat=2):
            probe = _Probe(tail, channels, out_channels, scale, height, width)
            for (row_class, row), (column_class, column) in product(rows.items(), columns.items()):
                taps, offset = probe.at(row, column)
                kernel[row_class, column_class] = taps.detach()
                bias[row_class, column_class] = offset.detach()
    return CollapsedTail(kernel, bias)


def collapse_interior(
    tail: TailFunction, channels: int, out_channels: int, scale: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Interior kernel ``[O * s * s, C, 5, 5]`` and bias ``[O * s * s]``, differentiable in the tail's weights.

    Right everywhere but in the outermost ring of low-resolution pixels; training crops that ring.
    """
    size = 2 * RADIUS + 1
    probe = _Probe(tail, channels, out_channels, scale, size, size, dtype=dtype, device=device, differentiable=True)
    return probe.at(RADIUS, RADIUS)


class _Probe:
    """Reads the tail's Jacobian at single low-resolution pixels of a `height` x `width` patch.

    Row i of a batch of zero patches is asked for output phase i only, so one backward pass gives
    all phases' kernels at once. The map is affine: the point at which it is probed does not matter.
    """

    def __init__(
        self,
        tail: TailFunction,
        channels: int,
        out_channels: int,
        scale: int,
        height: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | None = None,
        differentiable: bool = False,
    ) -> None:
        self.scale, self.height, self.width = scale, height, width
        self.differentiable = differentiable
        phases = out_channels * scale * scale
        self.patch = torch.zeros(phases, channels, height, width, dtype=dtype, device=device, requires_grad=True)
        out = tail(self.patch)
        expected = (phases, out_channels, height * scale, width * scale)
        if tuple(out.shape) != expected:
            raise ValueError(
                f"tail: expected output {expected} for input {tuple(self.patch.shape)}, got {tuple(out.shape)}"
            )
        self.out = out

    def at(self, row: int, column: int) -> tuple[Tensor, Tensor]:
        s = self.scale
        pixel = self.out[:, :, row * s : (row + 1) * s, column * s : (column + 1) * s]
        own_phase = pixel.reshape(len(self.out), -1).diagonal()
        (taps,) = torch.autograd.grad(own_phase.sum(), self.patch, retain_graph=True, create_graph=self.differentiable)
        window = torch.nn.functional.pad(taps, (RADIUS,) * 4)
        return window[:, :, row : row + 2 * RADIUS + 1, column : column + 2 * RADIUS + 1], own_phase
