"""What a fit is made from: statistics of the cells of pictures, and how far each candidate is from full depth there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ape_kernels import ops
from ape_kernels.backends import choose_for_patches
from ape_kernels.backends.torch.interpolate import interpolate
from ape_kernels.backends.torch.predict import kind_of
from ape_kernels.plan.fit import MEASURE
from ape_kernels.plan.tones import toned
from ape_kernels.plan.work import areas

PIECE = 10 * MEASURE  # pixels along the sides of what is run at once


class Cells(NamedTuple):
    """N cells of some pictures.

    statistics: float32 ``[N, F]``. error: float64 ``[N, C]``, mean squared difference of each candidate to full depth,
    all output channels, clamped, white being 1. area: int64 ``[N]``, pixels. whole: int64 ``[N]``, which cell of
    MEASURE pixels it is part of, numbered from 0. kind: float32 ``[N]``, of that whole.
    """

    statistics: Tensor
    error: Tensor
    area: Tensor
    whole: Tensor
    kind: Tensor


class Measured(NamedTuple):
    """How pictures are measured.

    run: float32 ``[P, C, h, w]`` and exits int64 ``[P]`` to the pictures ``[P, O, s * h, s * w]``.
    stages, scale: of the network. cell, value_range, tones: as in `ExitFit`.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    stages: int
    scale: int
    cell: int
    value_range: float
    tones: Tensor | None

    def cells(self, image: Tensor) -> Iterator[Cells]:
        """The cells of one image ``[C, H, W]``, measured piece by piece."""
        for rows in image.split(PIECE, 1):
            for piece in rows.split(PIECE, 2):
                yield self._cells(piece[None].contiguous())

    def _cells(self, image: Tensor) -> Cells:
        height, width = image.shape[2:]
        heights, widths = areas(height, width, self.cell, image.device)
        numbers = ops.statistics(
            image, self.cell, self.value_range, choose_for_patches("cpu", image.device, image.dtype)
        )[0]
        row, column = (
            torch.arange(len(side.flatten()), device="cpu") * self.cell // MEASURE for side in (heights, widths)
        )
        whole = (row[:, None] * (column[-1] + 1) + column[None]).flatten()
        error, area = self.errors(image), (heights * widths).flatten()
        kind = mean_by(kind_of(numbers).flatten().cpu(), whole)[whole]
        return Cells(numbers.flatten(0, 1).cpu(), error.cpu(), area.cpu(), whole, kind)

    def errors(self, image: Tensor) -> Tensor:
        """The errors of `Cells`, of an image ``[1, C, H, W]``."""
        deepest_first = torch.arange(self.stages - 1, -1, -1, device=image.device)  # so that workers end together
        pictures = self.run(image.expand(self.stages, -1, -1, -1), deepest_first)
        if image.shape[1] == pictures.shape[1]:
            first = interpolate(self._colours(image), self.scale)
        else:
            first = self.value_range - pictures[:1].round()  # cannot be interpolated: as far from it as can be
        full, *earlier = torch.cat([pictures, first]).div_(self.value_range).clamp_(0, 1)
        errors = []
        for picture in (earlier[-1], *earlier[-2::-1]):
            squares = (picture - full).square_().mean(0)
            errors.append(cell_means(squares, self.cell * self.scale).flatten())
        return torch.stack(errors, 1)

    def _colours(self, image: Tensor) -> Tensor:
        return image if self.tones is None else toned(image, self.tones, self.value_range)


def cell_means(values: Tensor, cell: int) -> Tensor:
    """Means float64 ``[R, K]`` of ``[H, W]`` over cells; the last of a row or column are cut off by the edge."""
    height, width = values.shape
    padded = functional.pad(values[None], (0, -width % cell, 0, -height % cell))
    heights, widths = areas(height, width, cell, values.device)
    return functional.avg_pool2d(padded, cell)[0].double() * cell**2 / (heights * widths)


def join(parts: list[Cells]) -> Cells:
    """All cells, one after the other. The wholes are numbered on."""
    begin, wholes = 0, []
    for part in parts:
        wholes.append(part.whole + begin)
        begin += int(part.whole.max()) + 1
    fields = (torch.cat(field) for field in zip(*parts, strict=True))
    return Cells(*fields)._replace(whole=torch.cat(wholes))


def mean_by(values: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """Means of ``[N]`` by groups numbered from 0, weighted if `weight` is given."""
    weight = torch.ones_like(values) if weight is None else weight.to(values.dtype)
    count = int(group.max()) + 1
    total = values.new_zeros(count).index_add_(0, group, values * weight)
    return total / values.new_zeros(count).index_add_(0, group, weight)
