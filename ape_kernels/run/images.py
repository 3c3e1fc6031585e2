"""Runs packed programs on whole images: patches share one feature map, so the picture is the model's own.

How far each cell of the image runs is an input (`Depths`). Images that would take too much memory run in bands of rows,
each with as many rows around it as its pixels depend on: the picture is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends.protocol import Depths, Kept, Picture
from ape_kernels.folding import fold_pixels, reflect_to_multiple
from ape_kernels.inputs import check_cells, checked_program, expect
from ape_kernels.packed import Packed, PictureShape
from ape_kernels.progress import Progress
from ape_kernels.sharing import receptive_field, why_not_shared
from ape_kernels.table import PackedProgram

RING = 4  # pixels around the cells that run which go through the first stage with them, if no fit says otherwise
BAND_BYTES = {"cpu": 1 << 30, "cuda": 1 << 33}  # of feature maps that are held at once


# Takes strips of the picture of one image from the top: the first row, and float32 ``[out_channels, rows, s * W]``.
Put = Callable[[int, Tensor], None]


def run_image(
    image: Tensor,
    packed: Packed,
    depths: Depths,
    colours: Tensor | None = None,
    progress: Progress | None = None,
    put: Put | None = None,
) -> Tensor:
    """Pictures float32 ``[B, out_channels, s * H, s * W]`` of images float32 ``[B, C, H, W]``.

    depths: cell and ring in pixels of the image; the cell a multiple of the program's fold.
    colours: what cells at -1 are interpolated from, as large as the image; None for the image itself.
    progress: told how far it is. put: takes the picture instead, B being 1; then an empty one is returned.
    Raises ValueError for a program that cannot run so, and for tensors of another dtype, shape or device.
    """
    if packed.sharing is None:
        raise ValueError(f"program: expected steps that read a few pixels around, got {why_not_shared(packed.program)}")
    program = [*packed.tensors, packed.sharing]
    if progress is not None or put is not None:
        return _run(image, program, packed.shape, depths, colours, packed.backend, progress, put)
    return torch.ops.ape_kernels.run_image(
        image, program, packed.shape, depths.exit_at, (depths.cell, depths.ring), colours, packed.backend
    )


def run_again(
    image: Tensor, packed: Packed, depths: Depths, colours: Tensor | None, kept: Kept, picture: Tensor | None
) -> Tensor:
    """`run_image` of one image after another, of which it computes what changed.

    kept: from `ops.keep`. picture: what the call before with `kept` has returned, which is written over; None in the
    first. Its sides are those of an image that the fold divides.
    """
    sharing, shape = packed.sharing, packed.shape
    assert sharing is not None
    check_image(image, packed.tensors, sharing, depths, colours, shape.fold)
    colours = image if colours is None else colours
    image, colours = (reflect_to_multiple(each, shape.fold).contiguous() for each in (image, colours))
    if picture is None:
        picture = image.new_empty(1, shape.out_channels, *(side * shape.scale for side in image.shape[2:]))
    exit_at = None if depths.exit_at is None else depths.exit_at.contiguous()
    depths = Depths(exit_at, depths.cell // shape.fold, -(-depths.ring // shape.fold))
    result = Picture(picture, colours, shape.scale, kept=kept)
    folded = fold_pixels(image, shape.fold).contiguous()
    ops.run_image(packed.tensors, sharing, folded, depths, result, packed.backend)
    return picture


def _run_image(
    image: Tensor,
    program: list[Tensor],
    shape: list[int],
    exit_at: Tensor | None,
    cells: list[int],
    colours: Tensor | None,
    backend: str,
) -> Tensor:
    """The operation, as torch sees it. Returns what `run_image` does.

    program: table and weights of `PackedProgram`, then `sharing`. shape: `PictureShape`. exit_at: as in `Depths`, and
    cells are cell and ring from there. colours: as `run_image` takes them.
    """
    return _run(image, program, PictureShape(*shape), Depths(exit_at, *cells), colours, backend, None, None)


def _run(
    image: Tensor,
    program: list[Tensor],
    shape: PictureShape,
    depths: Depths,
    colours: Tensor | None,
    backend: str,
    progress: Progress | None,
    put: Put | None,
) -> Tensor:
    *tensors, sharing = program
    packed, fold, scale = PackedProgram(*tensors), shape.fold, shape.scale
    check_image(image, packed, sharing, depths, colours, fold)
    batch, _, height, width = image.shape
    colours = image if colours is None else colours
    image, colours = (reflect_to_multiple(each, fold).contiguous() for each in (image, colours))
    folded = fold_pixels(image, fold).contiguous()
    exit_at = None if depths.exit_at is None else depths.exit_at.contiguous()
    rows, columns = (side * scale for side in image.shape[2:])
    out = image.new_empty(batch, shape.out_channels, rows if put is None else 0, columns)
    cell, ring = depths.cell, -(-depths.ring // fold)
    for part in _bands(packed, folded, Depths(exit_at, cell // fold, ring), backend):
        first, stop, begin, end = (row * fold for row in (part.first, part.stop, part.begin, part.end))
        some = colours if part.whole else colours[:, :, first:stop].contiguous()
        whole = part.whole and put is None
        made = out if whole else out.new_empty(batch, shape.out_channels, some.shape[2] * scale, columns)
        at = exit_at
        if exit_at is not None and not part.whole:
            at = exit_at[:, first // cell : -(-stop // cell)].contiguous()
        within = None if progress is None else _of_band(progress, begin / image.shape[2], end / image.shape[2])
        picture = Picture(made, some, scale, within)
        band = folded if part.whole else folded[:, :, part.first : part.stop].contiguous()
        ops.run_image(packed, sharing, band, Depths(at, cell // fold, ring), picture, backend)
        if within is not None:
            within(1.0)
        wanted = made[:, :, (begin - first) * scale : (end - first) * scale]
        if put is not None:
            put(begin * scale, wanted[0, :, : (height - begin) * scale, : width * scale])
        elif not whole:
            out[:, :, begin * scale : end * scale] = wanted
    if put is not None:
        return out
    cut = out[:, :, : height * scale, : width * scale]
    return cut if cut.shape == out.shape else cut.contiguous()


def _of_band(progress: Progress, begin: float, end: float) -> Progress:
    """Tells of a band that is a part of the whole."""
    return lambda share: progress(begin + share * (end - begin))


def _fake_run_image(image: Tensor, program: list[Tensor], shape: list[int], *_: Any) -> Tensor:
    picture = PictureShape(*shape)
    height, width = (side * picture.scale for side in image.shape[2:])
    return image.new_empty(image.shape[0], picture.out_channels, height, width)


def check_image(
    image: Tensor, packed: PackedProgram, sharing: Tensor, depths: Depths, colours: Tensor | None, fold: int
) -> None:
    """Raises ValueError for what native code would read or write outside of."""
    place = image.device
    expect(image, "image", torch.float32, ("B", "C", "H", "W"), place)
    checked_program([*packed], place)
    expect(sharing, "sharing", torch.int32, (len(packed.table), 2), torch.device("cpu"))
    if depths.cell < 1 or depths.cell % fold:
        raise ValueError(f"cell: expected a multiple of {fold}, got {depths.cell}")
    if depths.ring < 0:
        raise ValueError(f"ring: expected at least 0 pixels, got {depths.ring}")
    if depths.exit_at is not None:
        check_cells(depths.exit_at, "exit_at", image, depths.cell)
    if colours is not None:
        expect(colours, "colours", torch.float32, tuple(image.shape), place)


class _Band(NamedTuple):
    """Rows of the folded image: `begin` to `end` are wanted, `first` to `stop` are run, `whole` if that is all."""

    first: int
    stop: int
    begin: int
    end: int
    whole: bool


def _bands(packed: PackedProgram, image: Tensor, depths: Depths, backend: str) -> Iterator[_Band]:
    """The image in bands of whole cells, as few as memory allows; fixed by its size and the program alone."""
    batch, _, height, width = image.shape
    row_bytes = ops.image_bytes(packed, backend) * batch * width
    rows = height if row_bytes == 0 else max(1, BAND_BYTES.get(image.device.type, 1 << 33) // max(row_bytes, 1))
    if rows >= height:
        yield _Band(0, height, 0, height, True)
        return
    cell, margin = depths.cell, receptive_field(packed.table) + depths.ring
    step = max(cell, (rows - 2 * margin) // cell * cell)
    for begin in range(0, height, step):
        end = min(begin + step, height)
        first = max(0, begin - margin) // cell * cell
        yield _Band(first, min(height, end + margin), begin, end, False)


ops.register("run_image", _run_image, _fake_run_image)
