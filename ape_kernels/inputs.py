"""What users hand to `APEForward`, checked: pixels, and how far cells are to run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ape_kernels.geometry import cells_of
from ape_kernels.program import PatchProgram


def check_cells(exit_at: Tensor, name: str, image: Tensor, cell: int) -> None:
    """Raises ValueError unless `exit_at` is int64 ``[B, R, K]``, one number per cell of images ``[B, C, H, W]``."""
    batch, _, height, width = image.shape
    shape = (batch, *cells_of(height, width, cell))
    if exit_at.dtype != torch.int64 or tuple(exit_at.shape) != shape or exit_at.device != image.device:
        got = f"{exit_at.dtype} {list(exit_at.shape)} on {exit_at.device}"
        raise ValueError(f"{name}: expected int64 {list(shape)} on {image.device}, got {got}")


def checked_depths(exit_at: object, name: str, image: Tensor, cell: int, stages: int) -> Tensor:
    """`exit_at` if it says of every cell of the images how far it runs: -1, or a stage.

    Raises TypeError for what is no tensor, ValueError as `check_cells` does and for a stage that there is not.
    """
    if not isinstance(exit_at, Tensor):
        raise TypeError(f"{name}: expected an int64 torch.Tensor or None, got {type(exit_at).__name__}")
    check_cells(exit_at, name, image, cell)
    if exit_at.numel() and not -1 <= int(exit_at.min()) <= int(exit_at.max()) <= stages - 1:
        raise ValueError(f"{name}: expected -1 to {stages - 1}, got {int(exit_at.min())} to {int(exit_at.max())}")
    return exit_at


def checked_pixels(pixels: Tensor, name: str, program: PatchProgram, device: torch.device) -> Tensor:
    """`pixels` in float32, without gradient, when they are what `program` takes.

    Raises TypeError for another dtype, ValueError for another shape or device, NaN or infinity.
    """
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        got = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
        raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {got}")
    if pixels.ndim != 4 or pixels.shape[1] != program.in_channels or 0 in pixels.shape[2:]:
        raise ValueError(
            f"{name}: expected [N, {program.in_channels}, H, W], H and W at least 1, got {list(pixels.shape)}"
        )
    if pixels.device != device:
        raise ValueError(f"{name}: expected on the model's device {device}, got {pixels.device}")
    pixels = pixels.detach().float()
    # on other devices the answer would have to be waited for
    if pixels.device.type == "cpu" and len(pixels) and not _all_finite(pixels.resolve_neg().numpy()):
        raise ValueError(f"{name}: expected finite values (in float32), got NaN or infinity")
    return pixels


def _all_finite(pixels: NDArray[np.float32]) -> bool:
    """Whether there is no NaN or infinity among at least one value.

    NumPy stays in this thread and copies nothing. PyTorch would share the work out, and its threads then spin for up to
    15 ms, on the cores the patches are about to need: 4 of 37 ms for 16 patches of EDSR 16x64 in bf16 on two cores.
    """
    return bool(np.isfinite(pixels.min()) and np.isfinite(pixels.max()))
