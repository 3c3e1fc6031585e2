"""Split and merge: one program per piece of a row of pixels. Sums are float32 in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ape_kernels.geometry import AxisBlend

BLOCK = 256


@triton.jit
def _split_kernel(
    image, patches, row_start, column_start, channels, height, width, rows, columns, patch_height, patch_width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``[rows of all patches, blocks of a row]``; image ``[B, C, H, W]``, patches ``[B * R * K, C, h, w]``."""
    line = tl.program_id(0).to(tl.int64)
    y = line % patch_height
    c = line // patch_height % channels
    n = line // patch_height // channels
    column, row, b = n % columns, n // columns % rows, n // columns // rows
    from_row = ((b * channels + c) * height + tl.load(row_start + row) + y) * width + tl.load(column_start + column)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < patch_width
    tl.store(patches + line * patch_width + x, tl.load(image + from_row + x, mask=inside), mask=inside)


@triton.jit
def _merge_kernel(
    patches, image, row_index, row_weight, column_index, column_weight, channels, height, width, rows, columns,
    patch_height, patch_width, rows_covering, columns_covering, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``[rows of all images, blocks of a row]``. Terms of weight 0 are not read."""
    line = tl.program_id(0).to(tl.int64)
    y = line % height
    c = line // height % channels
    b = line // height // channels
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, rows_covering):
        weight_y = tl.load(row_weight + i * height + y)
        row = tl.load(row_index + 2 * i * height + y).to(tl.int64)
        pixel_y = tl.load(row_index + (2 * i + 1) * height + y)
        strip = tl.zeros((BLOCK,), dtype=tl.float32)
        for j in range(0, columns_covering):
            weight_x = tl.load(column_weight + j * width + x, mask=inside, other=0.0)
            used = inside & (weight_x * weight_y != 0.0)
            column = tl.load(column_index + 2 * j * width + x, mask=used, other=0)
            pixel_x = tl.load(column_index + (2 * j + 1) * width + x, mask=used, other=0)
            n = (b * rows + row) * columns + column
            at = ((n * channels + c) * patch_height + pixel_y) * patch_width + pixel_x
            strip += weight_x * tl.load(patches + at, mask=used, other=0.0).to(tl.float32)
        total += weight_y * strip
    tl.store(image + line * width + x, total.to(image.dtype.element_ty), mask=inside)


def split(image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    batch, channels, height, width = image.shape
    rows, columns = len(row_start), len(column_start)
    patches = image.new_empty(batch * rows * columns, channels, *patch_shape)
    if patches.numel():
        grid = (len(patches) * channels * patch_shape[0], triton.cdiv(patch_shape[1], BLOCK))
        with torch.cuda.device_of(image):
            _split_kernel[grid](
                image, patches, row_start, column_start, channels, height, width, rows, columns, *patch_shape, BLOCK
            )
    return patches


def merge(patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
    count, channels, patch_height, patch_width = patches.shape
    height, width = rows.index.shape[2], columns.index.shape[2]
    image = patches.new_empty(batch, channels, height, width)
    if image.numel():
        grid = (batch * channels * height, triton.cdiv(width, BLOCK))
        with torch.cuda.device_of(image):
            _merge_kernel[grid](
                patches, image, *rows, *columns, channels, height, width, patch_rows, count // (batch * patch_rows),
                patch_height, patch_width, len(rows.index), len(columns.index), BLOCK,
            )  # fmt: skip
    return image
