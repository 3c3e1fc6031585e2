"""Whole images: fold, split, run the patches, merge; large images in bands of patch rows, which bounds memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ape_kernels.backends import choose_for_patches
from ape_kernels.patches import Blend, PatchGrid, fold_pixels, folded_geometry, patch_grid

CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 30}  # of upscaled patches that are held at once

Results = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Cut:
    """How images are cut and put together; see `ops.upscale` for the meaning of each."""

    patch_size: int
    overlap: int
    blend: Blend
    upscale: int
    out_channels: int
    backend: str
    fold: int


def upscale_in_patches(image: Tensor, cut: Cut, run: Callable[[Tensor, int], Results], *, in_bands: bool) -> Results:
    """Picture, exit index and capacity of every patch, shapes as `ops.upscale` promises.

    run: takes patches ``[P, C, h, w]``, all of an image or some, and how many an image has; gives SR patches, exit
    index and capacity. in_bands: `run` may be given some of an image's patches at a time.
    """
    sr_height, sr_width = (side * cut.upscale // cut.fold for side in image.shape[2:])
    image = fold_pixels(image, cut.fold)
    batch, _, height, width = image.shape
    patch_size, overlap = folded_geometry(cut.patch_size, cut.overlap, cut.fold)
    grid = patch_grid(height, width, patch_size, overlap, cut.upscale, cut.blend)
    geometry = choose_for_patches(cut.backend, image.device, image.dtype)
    rows, columns = grid.shape
    if batch == 0:
        shape = (0, rows, columns)
        picture = image.new_empty(0, cut.out_channels, sr_height, sr_width)
        return picture, torch.empty(shape, dtype=torch.int64, device=image.device), image.new_empty(shape)
    step = _rows_at_once(image, cut, grid) if in_bands else batch * rows
    if step >= batch * rows:
        sr, exit_index, capacity = run(grid.split(image, geometry), rows * columns)
        picture = grid.merge(sr, batch, geometry)
    else:
        picture, exit_index, capacity = _in_bands(image, cut, run, grid, step, geometry)
    shape = (batch, rows, columns)
    return picture[:, :, :sr_height, :sr_width].contiguous(), exit_index.view(shape), capacity.view(shape)


def _rows_at_once(image: Tensor, cut: Cut, grid: PatchGrid) -> int:
    patch_bytes = math.prod(grid.patch_shape) * cut.upscale**2 * cut.out_channels * image.element_size()
    chunk = max(CHUNK_BYTES.get(image.device.type, 1 << 30), 4 * torch.get_num_threads() * patch_bytes)  # no idle cores
    return max(1, chunk // (grid.shape[1] * patch_bytes))


def _in_bands(
    image: Tensor, cut: Cut, run: Callable[[Tensor, int], Results], grid: PatchGrid, step: int, geometry: str
) -> Results:
    """`step` rows of patches at a time; rows that reach into the next band are kept until then."""
    batch, _, height, width = image.shape
    rows, columns = grid.shape
    picture = image.new_empty(batch, cut.out_channels, height * cut.upscale, width * cut.upscale)
    exit_index = torch.empty(batch, rows, columns, dtype=torch.int64, device=image.device)
    capacity = image.new_empty(batch, rows, columns)
    for i in range(batch):
        kept = picture.new_empty(0, cut.out_channels, *(side * cut.upscale for side in grid.patch_shape))
        for band in grid.bands(step):
            new, index, known = run(grid.split(image[i : i + 1], geometry, band.new_rows), rows * columns)
            exit_index[i, band.new_rows] = index.view(-1, columns)
            capacity[i, band.new_rows] = known.view(-1, columns)
            kept = torch.cat([kept, new])
            picture[i : i + 1, :, band.pixels] = grid.merge(kept, 1, geometry, band)
            kept = kept[len(kept) - band.keep_rows * columns :].clone()
    return picture, exit_index, capacity
