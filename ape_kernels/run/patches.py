"""Runs patches on their own, and whole images cut into patches and merged.

An image is folded, split, run patch by patch and merged; a large one in bands of patch rows, which bounds memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ape_kernels import ops
from ape_kernels.backends import choose_for_patches
from ape_kernels.backends.protocol import Exits, PatchResults
from ape_kernels.folding import fold_pixels
from ape_kernels.geometry import AxisBlend, Band, Blend, PatchGrid, folded_geometry, patch_count, patch_grid
from ape_kernels.inputs import checked_program, expect
from ape_kernels.packed import Packed, PictureShape
from ape_kernels.progress import Progress
from ape_kernels.run.images import Put
from ape_kernels.table import PackedProgram

CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 30}  # of upscaled patches that are held at once

# Runs patches [P, C, h, w], of which the first is number `begin` of all, into tensors that are there.
FillPatches = Callable[[PatchResults, Tensor, int], None]


@dataclass(frozen=True)
class Cut:
    """How images are cut and put together: low-resolution pixels, and the blend of overlaps."""

    patch_size: int
    overlap: int
    blend: Blend


def run_patches(patches: Tensor, packed: Packed, exits: Exits) -> PatchResults:
    """Patches on their own. patches: float32 ``[P, C, h, w]``; of the pictures, what a fold reflected is cut off."""
    upscale, out_channels, fold = shape = packed.shape
    folded = fold_pixels(patches, fold)
    results = PatchResults(
        *torch.ops.ape_kernels.run_patches(folded, packed.tensors, *exits, upscale, out_channels, packed.backend)
    )
    if fold == 1:
        return results
    height, width = (side * shape.scale for side in patches.shape[2:])
    return results._replace(sr=results.sr[:, :, :height, :width])


def run_images(
    image: Tensor,
    packed: Packed,
    cut: Cut,
    exits: Exits,
    progress: Progress | None = None,
    put: Put | None = None,
) -> PatchResults:
    """Whole images, exits and capacities ``[B, R, K]`` on the patch grid.

    image: float32 ``[B, C, H, W]``. exits: `exit_at` is int64 ``[B, R, K]`` here, on the patch grid. progress, put: see
    `ape_kernels.run.images.run_image`.
    """
    if progress is not None or put is not None:
        return _run(image, packed.tensors, packed.shape, exits, cut, packed.backend, progress, put)
    return PatchResults(
        *torch.ops.ape_kernels.upscale(
            image, packed.tensors, packed.shape, *exits, (cut.patch_size, cut.overlap), cut.blend, packed.backend
        )
    )


def split(grid: PatchGrid, image: Tensor, backend: str = "torch", rows: slice = slice(None)) -> Tensor:
    """Image ``[B, C, height, width]`` to patches ``[B * rows * columns, C, h, w]``, batch-major, then row-major.

    rows: of the patches, all or some. Raises ValueError for an image of another size than the grid's.
    """
    if image.ndim != 4 or tuple(image.shape[2:]) != (grid.height, grid.width):
        raise ValueError(f"image: expected [B, C, {grid.height}, {grid.width}], got {list(image.shape)}")
    row_start, column_start = (_starts_on(image.device, s) for s in (grid.row_starts[rows], grid.column_starts))
    return ops.split(image, row_start, column_start, *grid.patch_shape, backend)


def merge(grid: PatchGrid, patches: Tensor, batch: int = 1, backend: str = "torch", band: Band | None = None) -> Tensor:
    """Patches ``[B * rows * columns, C, s * h, s * w]`` to images ``[B, C, s * height, s * width]``, s = grid.scale.

    band: of the picture, made of its kept and new rows of patches, instead of the whole.
    Raises ValueError for patches of another number or size.
    """
    count = grid.shape[0] if band is None else band.patch_rows
    height, width = (side * grid.scale for side in grid.patch_shape)
    expected = batch * count * grid.shape[1]
    if patches.ndim != 4 or len(patches) != expected or tuple(patches.shape[2:]) != (height, width):
        raise ValueError(f"patches: expected [{expected}, C, {height}, {width}], got {list(patches.shape)}")
    rows, columns = _merge_tables(grid, patches.device, band)
    return ops.merge(patches, list(rows), list(columns), batch, count, backend)


@lru_cache(maxsize=1024)
def _starts_on(device: torch.device, values: tuple[int, ...]) -> Tensor:
    """int32 ``[len(values)]``, kept: a copy to a GPU would make the host wait, and cannot be captured in a graph."""
    return torch.tensor(values, dtype=torch.int32, device=device)


@lru_cache(maxsize=1024)
def _merge_tables(grid: PatchGrid, device: torch.device, band: Band | None) -> tuple[AxisBlend, AxisBlend]:
    """Index and weight of the picture's rows, then of its columns, on `device`. Kept as those of `_starts_on` are."""
    rows, columns = grid.row_blend, grid.column_blend
    index, weight = rows
    if band is not None:
        pixels = slice(band.begin, band.end)
        index, weight = index[:, :, pixels].clone(), weight[:, pixels].contiguous()
        first = band.first - band.kept_rows
        index[:, 0] = (index[:, 0] - first).clamp_(0, band.patch_rows - 1)  # where the weight is 0, any row will do
    return _on(AxisBlend(index, weight), device), _on(columns, device)


def _on(blend: AxisBlend, device: torch.device) -> AxisBlend:
    return AxisBlend(blend.index.to(device), blend.weight.to(device))


def _upscale(
    image: Tensor,
    program: list[Tensor],
    shape: list[int],
    boundary: float,
    exit_at: Tensor | None,
    cut: list[int],
    blend: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operation on whole images, as torch sees it.

    image: float32 ``[B, C, H, W]``. program: `PackedProgram`. shape: `PictureShape`. boundary, exit_at: see
    `run_images`. cut, blend: patch_size and overlap, then the blend of `Cut`.
    Returns sr float32 ``[B, out_channels, s * H, s * W]`` and, on the patch grid, exit_index int64 ``[B, R, K]`` and
    capacity float32 ``[B, R, K]``.
    """
    patch_size, overlap = cut
    cuts = Cut(patch_size, overlap, cast(Blend, blend))
    exits = Exits(boundary, exit_at)
    return _run(image, checked_program(program, image.device), PictureShape(*shape), exits, cuts, backend, None, None)


def _run(
    image: Tensor,
    packed: PackedProgram,
    shape: PictureShape,
    exits: Exits,
    cut: Cut,
    backend: str,
    progress: Progress | None,
    put: Put | None,
) -> PatchResults:
    expect(image, "image", torch.float32, ("B", "C", "H", "W"), packed.weights.device)
    upscale, out_channels, fold = shape

    def fill(out: PatchResults, patches: Tensor, begin: int) -> None:
        part = None if depths is None else depths[begin : begin + len(patches)]
        ops.fill_patches(out, patches, packed, Exits(exits.boundary, part), backend)

    def run(patches: Tensor) -> PatchResults:
        out = PatchResults.empty(patches, upscale, out_channels)
        fill(out, patches, 0)
        return out

    sr_height, sr_width = (side * shape.scale for side in image.shape[2:])
    image = fold_pixels(image, fold)
    batch, _, height, width = image.shape
    grid = patch_grid(height, width, *folded_geometry(cut.patch_size, cut.overlap, fold), upscale, cut.blend)
    rows, columns = grid.shape
    depths = None
    if exits.exit_at is not None:
        depths = expect(exits.exit_at, "exit_at", torch.int64, (batch, rows, columns), image.device).flatten()
    if batch == 0:
        results = PatchResults.empty(image.new_empty(0, 1, height, width), upscale, out_channels)
    elif (step := _rows_at_once(image, grid, out_channels)) >= batch * rows:
        results = _at_once(image, grid, run, backend)
        if put is not None:
            put(0, results.sr[0, :, :sr_height, :sr_width])
        if progress is not None:
            progress(1.0)
    else:
        picture = None
        if put is None:
            picture = image.new_empty(batch, out_channels, height * upscale, width * upscale)

        def keep(number: int, band: Band, strip: Tensor) -> None:
            if picture is not None:
                picture[number : number + 1, :, band.begin : band.end] = strip
            elif put is not None:
                put(band.begin, strip[0, :, : sr_height - band.begin, :sr_width])
            if progress is not None:
                progress((number + band.end / (height * upscale)) / batch)

        exit_index, capacity = _in_bands(image, grid, fill, step, out_channels, backend, keep)
        empty = image.new_empty(batch, out_channels, 0, sr_width)
        results = PatchResults(empty if picture is None else picture, exit_index, capacity)
    sr, exit_index, capacity = results
    picture = sr[:, :, :sr_height, :sr_width].contiguous()
    return PatchResults(picture, exit_index.view(batch, rows, columns), capacity.view(batch, rows, columns))


def _fake_upscale(
    image: Tensor, program: list[Tensor], shape: list[int], boundary: float, exit_at: Any, cut: list[int], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _channels, *sides = image.shape
    picture = PictureShape(*shape)
    sr = image.new_empty(batch, picture.out_channels, *(side * picture.scale for side in sides))
    patch_size, overlap = cut
    geometry = folded_geometry(patch_size, overlap, picture.fold)
    grid = (batch, *(patch_count((side + picture.fold - 1) // picture.fold, *geometry) for side in sides))
    return sr, image.new_empty(grid, dtype=torch.int64), image.new_empty(grid)


def _rows_at_once(image: Tensor, grid: PatchGrid, out_channels: int) -> int:
    patch_bytes = math.prod(grid.patch_shape) * grid.scale**2 * out_channels * image.element_size()
    chunk = max(CHUNK_BYTES.get(image.device.type, 1 << 30), 4 * torch.get_num_threads() * patch_bytes)  # no idle cores
    return max(1, chunk // (grid.shape[1] * patch_bytes))


def _at_once(image: Tensor, grid: PatchGrid, run: Callable[[Tensor], PatchResults], backend: str) -> PatchResults:
    """Picture, exit index and capacity of images that are small enough to be run whole."""
    cutter = choose_for_patches(backend, image.device, image.dtype)
    sr, exit_index, capacity = run(split(grid, image, cutter))
    return PatchResults(merge(grid, sr, len(image), cutter), exit_index, capacity)


def _in_bands(
    image: Tensor,
    grid: PatchGrid,
    fill: FillPatches,
    step: int,
    out_channels: int,
    backend: str,
    keep: Callable[[int, Band, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Exit index and capacity. `step` rows of patches at a time; rows that reach into the next band stay until then.

    keep: takes the number of the image, a band and its part of the picture.
    """
    cutter = choose_for_patches(backend, image.device, image.dtype)
    batch, (rows, columns) = len(image), grid.shape
    exit_index = torch.empty(batch, rows, columns, dtype=torch.int64, device=image.device)
    capacity = image.new_empty(batch, rows, columns)
    bands = list(grid.bands(step))
    for band in bands:  # now: small tensors that stay, between large ones that come and go, leave holes in the heap
        _starts_on(image.device, grid.row_starts[band.first : band.stop])
        _merge_tables(grid, image.device, band)
    most = max(band.patch_rows for band in bands) * columns
    held = image.new_empty(most, out_channels, *(side * grid.scale for side in grid.patch_shape))
    for i in range(batch):
        count = 0
        for band in bands:
            new_rows = slice(band.first, band.stop)
            patches = split(grid, image[i : i + 1], cutter, new_rows)
            new = held[count : count + len(patches)]
            out = PatchResults(new, exit_index[i, new_rows].view(-1), capacity[i, new_rows].view(-1))
            fill(out, patches, (i * rows + band.first) * columns)
            count += len(patches)
            keep(i, band, merge(grid, held[:count], 1, cutter, band))
            kept = held[count - band.keep_rows * columns : count]
            held[: len(kept)] = kept.clone() if 2 * len(kept) > count else kept  # both places may overlap
            count = len(kept)
    return exit_index, capacity


ops.register("upscale", _upscale, _fake_upscale)
