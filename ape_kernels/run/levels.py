"""Images and pictures as whole numbers, by the backends that read and write them so: no floats of a whole picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends import get_backend
from ape_kernels.backends.protocol import Depths, Kept, LevelsBackend, LevelsPicture
from ape_kernels.folding import reflect_to_multiple
from ape_kernels.packed import Packed
from ape_kernels.progress import Progress
from ape_kernels.run.images import check_image

DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


class Levels(NamedTuple):
    """An image, and where its picture goes.

    image: uint8 or uint16 ``[H, W, C]``. out: of the same dtype ``[s * H, s * W, 3]``, or with one channel, the luma of
    three; the channels of a pixel side by side. value_range: what the greatest number is for the network.
    """

    image: NDArray[Any]
    out: NDArray[Any]
    value_range: float


def can(packed: Packed) -> bool:
    """Whether the backend reads and writes whole numbers, for programs on shared feature maps."""
    return packed.sharing is not None and isinstance(get_backend(packed.backend), LevelsBackend)


def run_levels(
    levels: Levels,
    packed: Packed,
    depths: Depths,
    colours: Tensor | None = None,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> None:
    """`run_image` with whole numbers: rounded to the nearest, halves to even, and held in the range of the dtype.

    colours: as `run_image` takes them, float32 ``[1, C, H, W]``. kept: from `ops.keep`, always with the same `out`.

    Raises ValueError for arrays of another dtype or shape, and as `run_image` does.
    """
    shape, sharing = packed.shape, packed.sharing
    assert sharing is not None
    _check(levels, packed)
    height, width, channels = levels.image.shape
    like = torch.empty(1, dtype=torch.float32, device="cpu").expand(1, channels, height, width)
    check_image(like, packed.tensors, sharing, depths, colours, shape.fold)
    exit_at = None if depths.exit_at is None else depths.exit_at.contiguous()
    if colours is not None:
        colours = reflect_to_multiple(colours, shape.fold).contiguous()
    picture = LevelsPicture(
        _extended(levels.image, shape.fold),
        levels.out,
        colours,
        levels.value_range,
        shape.scale,
        progress,
        kept,
    )
    depths = Depths(exit_at, depths.cell // shape.fold, -(-depths.ring // shape.fold))
    ops.run_levels(packed.tensors, sharing, shape.fold, depths, picture, packed.backend)


def _extended(image: NDArray[Any], fold: int) -> NDArray[Any]:
    """Contiguous, and by reflection so large that `fold` divides the sides."""
    image = np.ascontiguousarray(image)
    if image.shape[0] % fold == image.shape[1] % fold == 0:
        return image
    places = torch.arange(image.shape[0] * image.shape[1], device="cpu").view(1, 1, *image.shape[:2])
    places = reflect_to_multiple(places, fold)[0, 0].numpy()
    return image.reshape(-1, image.shape[2])[places]


def _check(levels: Levels, packed: Packed) -> None:
    image, out = levels.image, levels.out
    channels, scale, made = packed.program.in_channels, packed.shape.scale, packed.shape.out_channels
    if image.dtype not in DTYPES or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        got = f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"image: expected uint8 or uint16 [H, W, {channels}], H and W at least 1, got {got}")
    sides = [side * scale for side in image.shape[:2]]
    shown = (made, 1) if made == 3 else (made,)
    if out.dtype != image.dtype or list(out.shape[:2]) != sides or out.ndim != 3 or out.shape[2] not in shown:
        expected = f"{image.dtype} {[*sides, ' or '.join(map(str, shown))]}"
        raise ValueError(f"out: expected {expected}, got {out.dtype} {list(out.shape)}")
    apart = out.shape[2] > 1 and out.strides[2] != out.itemsize
    if apart or any(step % out.itemsize or step < 0 for step in out.strides):
        raise ValueError(f"out: expected the channels of a pixel side by side, got strides {out.strides}")
