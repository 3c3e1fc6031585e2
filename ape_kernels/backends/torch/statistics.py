"""What a plan is made from: a few numbers of each cell of the image. The oracle of the native form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# 3x3 filters of the luma; the first one also of two colour differences
FILTERS = (
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),  # Laplacian
    ((1, -2, 1), (-2, 4, -2), (1, -2, 1)),  # mixed fourth derivative
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),  # second derivatives
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
)
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
LEAST_SQUARE = 1e-8  # mean squares below are as good as zero: a hundredth of a level of 8 bits


def statistics(image: Tensor, cell: int, value_range: float) -> Tensor:
    # filters as differences of shifted views: elementwise, so that no convolution of a GPU rounds to TF32
    pixels = image / value_range
    luma, colours = _luma(pixels), _colours(pixels)
    filtered = torch.stack([_filter(luma, taps) for taps in FILTERS], 1)
    laplacians = torch.stack([_filter(colour, FILTERS[0]) for colour in colours], 1)
    squares, chroma = filtered.square(), laplacians.square()
    means = _means(torch.cat([squares, squares.square(), chroma, luma[:, None, 1:-1, 1:-1]], 1), cell)
    second, fourth, colour, level = means.split([len(FILTERS), len(FILTERS), 2, 1], -1)
    logs = _log(second, LEAST_SQUARE) / 2, _log(fourth, LEAST_SQUARE**2) / 4, _log(colour, LEAST_SQUARE) / 2
    return torch.cat([*logs, level], -1)


def _luma(pixels: Tensor) -> Tensor:
    """``[B, H + 2, W + 2]``: with one pixel around the image, as at its border."""
    if pixels.shape[1] != 3:
        return _around(pixels.mean(1))
    red, green, blue = pixels.unbind(1)
    return _around(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)


def _colours(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Red and blue less green, as `_luma`; zero where there are not three channels."""
    if pixels.shape[1] != 3:
        nothing = torch.zeros_like(_around(pixels[:, 0]))
        return nothing, nothing
    red, green, blue = pixels.unbind(1)
    return _around(red - green), _around(blue - green)


def _around(plane: Tensor) -> Tensor:
    return functional.pad(plane[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]


def _filter(plane: Tensor, taps: tuple[tuple[int, ...], ...]) -> Tensor:
    height, width = (side - 2 for side in plane.shape[1:])
    views = (
        tap * plane[:, y : y + height, x : x + width] for y, row in enumerate(taps) for x, tap in enumerate(row) if tap
    )
    return sum(views, start=plane.new_zeros(()))


def _means(planes: Tensor, cell: int) -> Tensor:
    """Means over cells, ``[B, F, H, W]`` to ``[B, R, K, F]``; cells at the edge count the pixels they have."""
    height, width = planes.shape[2:]
    padding = (0, -width % cell, 0, -height % cell)
    sums = functional.avg_pool2d(functional.pad(planes, padding), cell)
    return (sums / functional.avg_pool2d(functional.pad(torch.ones_like(planes[:1, :1]), padding), cell)).permute(
        0, 2, 3, 1
    )


def _log(values: Tensor, least: float) -> Tensor:
    return values.clamp_min(least).log()
