"""Exact collapse of a linear tail into one convolution per border class.

An EDSR-like tail (convolutions and pixel shuffles, no activation) is an affine map. It equals one 5x5 convolution at
low resolution followed by one pixel shuffle. The zero padding *inside* the tail only affects the border pixels of the
low-resolution patch. Each axis therefore has four border classes, and the class of the row together with the class of
the column picks the kernel:

    INTERIOR  anything else          FIRST  row (column) 0
    LAST      row (column) n - 1     ONLY   n == 1, first and last at once

A tail of scale 4 and 64 channels costs 1.53 MFLOP per low-resolution pixel as written and 0.15 MFLOP collapsed. The
result differs by rounding only.

The method: the picture of one low-resolution pixel is O * s * s values. The code follows each value back from the last
convolution to the first, to the few pixels of every map that it depends on. One row of a matrix holds the factors with
which one value depends on the channels of one such pixel. A step back is then a matrix product (1.7 GFLOP in all for
256 channels and scale 4). A border only removes the terms that pass through pixels outside a map. Rows are therefore
kept apart by the sides on which they have left the map, and each border class adds up the rows that it keeps. No
product is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn

from ape_kernels.brief import brief_repr

# The bits say on which sides of the pixel the map ends: 1 before the pixel, 2 after it.
INTERIOR, FIRST, LAST, ONLY = range(4)
RADIUS = 2  # a chain of 3x3 convolutions with upsampling between them never reaches further
SIZE = 2 * RADIUS + 1


@dataclass(frozen=True)
class CollapsedTail:
    """Kernels of a collapsed tail, indexed by the border class of the row, then of the column.

    kernel: ``[4, 4, O * s * s, C, 5, 5]``, output channels in ``F.pixel_shuffle`` order.
    bias: ``[4, 4, O * s * s]``. `collapse_tail` gives both in float64 on the CPU.
    """

    kernel: Tensor
    bias: Tensor

    __repr__ = brief_repr


@dataclass(frozen=True)
class LinearStep:
    """``pixel_shuffle(conv(x) + bias, shuffle)``, the convolution zero-padded and of stride 1.

    weight: ``[C_out * shuffle**2, C_in, k, k]``, k odd. bias: ``[C_out * shuffle**2]`` or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    shuffle: int = 1

    __repr__ = brief_repr

    def exact(self) -> LinearStep:
        """The same step in float64 on the CPU, without gradients."""
        return LinearStep(_exact(self.weight), None if self.bias is None else _exact(self.bias), self.shuffle)


def linear_steps(modules: Iterable[nn.Module]) -> tuple[LinearStep, ...]:
    """The steps of a linear tail. They share the modules' weights.

    modules: in the order in which they run. Each is an ``nn.Conv2d`` of stride 1 that is zero-padded to keep the size,
    an ``nn.PixelShuffle`` directly after such a convolution, or an ``nn.Sequential`` of these.

    Raises ValueError for any other module.
    """
    steps: list[LinearStep] = []
    for layer in _layers(modules):
        match layer:
            case nn.Conv2d(groups=1, stride=(1, 1), dilation=(1, 1), padding_mode="zeros") if _same_size(layer):
                steps.append(LinearStep(layer.weight, layer.bias))
            case nn.PixelShuffle() if steps and steps[-1].shuffle == 1:
                steps[-1] = replace(steps[-1], shuffle=layer.upscale_factor)
            case _:
                raise ValueError(f"tail: expected convolutions, each with a pixel shuffle or none, got {layer}")
    return tuple(steps)


def collapse_tail(tail: Iterable[LinearStep]) -> CollapsedTail:
    """Collapse `tail` exactly, with all border classes, in float64 on the CPU, without gradients.

    Raises ValueError for a tail that reaches further than 3x3 convolutions with upsampling between them do.
    """
    with torch.inference_mode(False), torch.no_grad():  # the caller may be in another mode
        rows = _Rows.of([step.exact() for step in tail])
        kernel, bias = rows.zeros(16)
        for i, classes in enumerate(product(range(4), range(4))):
            rows.add_to(kernel[i], bias[i], classes)
    kernel = kernel.view(4, 4, rows.phases, SIZE, SIZE, -1).permute(0, 1, 2, 5, 3, 4)
    return CollapsedTail(kernel, bias.view(4, 4, -1))


def collapse_interior(tail: Iterable[LinearStep]) -> tuple[Tensor, Tensor]:
    """Interior kernel ``[O * s * s, C, 5, 5]`` and bias ``[O * s * s]``, differentiable in the tail's weights.

    Both have the dtype and the device of these weights. The kernel is right everywhere but at the border pixels of the
    low-resolution patch; training crops these. Raises ValueError as `collapse_tail` does.
    """
    rows = _Rows.of(list(tail), borders=False)
    kernel, bias = rows.zeros(1)
    rows.add_to(kernel[0], bias[0], (INTERIOR, INTERIOR))
    return kernel.view(rows.phases, SIZE, SIZE, -1).permute(0, 3, 1, 2).contiguous(), bias[0]


def _layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _layers(module)
        else:
            yield module


def _same_size(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    return all(2 * p + 1 == k for p, k in zip(conv.padding, conv.kernel_size, strict=True))


def _exact(values: Tensor) -> Tensor:
    return values.detach().to(device="cpu", dtype=torch.float64)


@dataclass
class _Rows:
    """How the picture of one low-resolution pixel depends on the pixels of one of the tail's maps.

    values: ``[R, C]``. Each row holds the factors with which one value of the picture depends on the channels of one
    pixel of the map.
    where: int64 ``[R, 5]`` on the CPU, which value and which pixel a row belongs to. The columns are: the number of the
    value; the row and the column of the pixel, counted from the first pixel that belongs to the low-resolution pixel;
    for each axis the sides on which a map was left on the way, as bits.
    phases: how many values the picture of one low-resolution pixel has.
    constant: rows of `where`, and what the biases have added to their values so far.
    """

    values: Tensor
    where: Tensor
    phases: int
    constant: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, tail: list[LinearStep], borders: bool = True) -> _Rows:
        """The rows over the tail's input. Without `borders` they do not record the sides on which maps were left."""
        last = tail[-1]
        resolution = math.prod(step.shuffle for step in tail)
        color, row, column = torch.meshgrid(
            *(torch.arange(n, device="cpu") for n in (len(last.weight) // last.shuffle**2, resolution, resolution)),
            indexing="ij",
        )
        color, row, column = color.flatten(), row.flatten(), column.flatten()
        none = torch.zeros_like(color)
        where = torch.stack([torch.arange(len(color), device="cpu"), row, column, none, none], dim=1)
        colors = torch.eye(int(color[-1]) + 1, dtype=last.weight.dtype, device=last.weight.device)
        rows = cls(colors[_on(colors.device, color)], where, len(color), [])
        for number, step in reversed(list(enumerate(tail))):
            resolution //= step.shuffle
            rows = rows._before(step, resolution, reach=1 if number else RADIUS, borders=borders)
        return rows

    def _before(self, step: LinearStep, resolution: int, *, reach: int, borders: bool) -> _Rows:
        """The rows over the map that `step` reads; the map has `resolution` times the low resolution.

        reach: how many low-resolution pixels away from the first one the map's pixels may lie. A pixel that lies
        further away raises ValueError.
        """
        factor, device = step.shuffle, self.values.device
        value, position, side = self.where[:, :1], self.where[:, 1:3], self.where[:, 3:]
        inner, position = position % factor, position // factor
        subpixel = inner[:, 0] * factor + inner[:, 1]  # which of the shuffle's factor * factor values
        channels, size = step.weight.shape[1], step.weight.shape[2]
        weight = step.weight.unflatten(0, (-1, factor**2)).permute(1, 0, 3, 4, 2).flatten(2)
        tap = torch.cartesian_prod(*[torch.arange(size, device="cpu") - size // 2] * 2)
        position = position[:, None] + tap
        away = position // resolution  # in low-resolution pixels
        if away.abs().max() > reach:
            raise ValueError(f"tail: expected to reach at most {reach} low-resolution pixels, got {away.abs().max()}")
        side = side[:, None].expand(position.shape)
        if borders:
            side = side | (away < 0) * FIRST | (away > 0) * LAST
        where = torch.cat([value[:, None].expand(-1, len(tap), 1), position, side], dim=2)
        where, target = _unique(where.flatten(0, 1))
        target = target.view(-1, len(tap))
        values = self.values.new_zeros(len(where), channels)
        constant = list(self.constant)
        for i in range(factor**2):
            chosen = (subpixel == i).nonzero()[:, 0]
            rows = self.values[_on(device, chosen)]
            values.index_add_(0, _on(device, target[chosen].flatten()), (rows @ weight[i]).view(-1, channels))
            if step.bias is not None:
                constant.append((self.where[chosen], rows @ step.bias[i :: factor**2]))
        return _Rows(values, where, self.phases, constant)

    def zeros(self, count: int) -> tuple[Tensor, Tensor]:
        """Zero kernels ``[count, phases * 5 * 5, C]`` and biases ``[count, phases]``, to be filled by `add_to`."""
        channels = self.values.shape[1]
        return self.values.new_zeros(count, self.phases * SIZE**2, channels), self.values.new_zeros(count, self.phases)

    def add_to(self, kernel: Tensor, bias: Tensor, classes: tuple[int, int]) -> None:
        """Add to `kernel` and `bias` the rows that count at a pixel of these border classes (of row and column)."""
        value, row, column = self.where[:, :3].unbind(1)
        _add(kernel, (value * SIZE + row + RADIUS) * SIZE + column + RADIUS, self.values, self.where, classes)
        for where, amounts in self.constant:
            _add(bias, where[:, 0], amounts, where, classes)


def _unique(where: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of an int64 matrix, and for each row the number of its distinct row.

    This is faster than ``where.unique(dim=0)``.
    """
    lowest = where.amin(dim=0)
    key = torch.zeros(len(where), dtype=torch.int64, device="cpu")
    for column, low, high in zip(where.unbind(1), lowest.tolist(), where.amax(dim=0).tolist(), strict=True):
        key = key * (high - low + 1) + column - low
    keys, inverse = key.unique(return_inverse=True)
    unique = where.new_empty(len(keys), where.shape[1])
    unique[inverse] = where
    return unique, inverse


def _add(total: Tensor, at: Tensor, amounts: Tensor, where: Tensor, classes: tuple[int, int]) -> None:
    """Add to `total` those of `amounts` that have not left a map on a side where the map ends."""
    kept = ((where[:, 3:] & torch.tensor(classes, device="cpu")) == 0).all(dim=1).nonzero()[:, 0]
    total.index_add_(0, _on(total.device, at[kept]), amounts[_on(total.device, kept)])


def _on(device: torch.device, index: Tensor) -> Tensor:
    """`index`, int64 on the CPU, copied to `device`.

    The copy is kept for later calls, because a training step that is recorded as a CUDA graph must not copy.
    """
    return index if device.type == "cpu" else _kept_on(device, index.numpy().tobytes())


@lru_cache(maxsize=256)
def _kept_on(device: torch.device, index: bytes) -> Tensor:
    return torch.frombuffer(bytearray(index), dtype=torch.int64).to(device)
