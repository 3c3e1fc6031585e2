"""Split and merge by indexing, without a loop over patches. Sums are in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor

from ape_kernels.geometry import AxisBlend


def split(image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    (batch, channels), (patch_height, patch_width) = image.shape[:2], patch_shape
    rows = row_start.long()[:, None] + torch.arange(patch_height, device=image.device)
    columns = column_start.long()[:, None] + torch.arange(patch_width, device=image.device)
    # [B, C, R, h, K, w]: every patch row with every patch column
    cut = image[:, :, rows[:, :, None, None], columns[None, None]]
    cut = cut.permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch * len(row_start) * len(column_start), channels, patch_height, patch_width)


def merge(patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
    _, channels, height, width = patches.shape
    grid = patches.reshape(batch, patch_rows, -1, channels, height, width)
    zero = rows.weight.new_zeros(())
    across = (
        grid[:, :, patch.long(), :, :, pixel.long()].float() * weight[:, None, None, None, None]
        for (patch, pixel), weight in zip(*columns, strict=True)
    )
    strips = sum(across, start=zero)  # [W, B, R, C, h]: each row of patches, merged along the row
    down = (
        strips[:, :, patch.long(), :, pixel.long()] * weight[:, None, None, None]
        for (patch, pixel), weight in zip(*rows, strict=True)
    )
    image = sum(down, start=zero)  # [H, W, B, C]
    return image.permute(2, 3, 0, 1).contiguous().to(patches.dtype)
