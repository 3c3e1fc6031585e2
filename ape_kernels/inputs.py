"""What users hand to `APEForward` and to the operations, checked: dtype, shape, device, strides, and range."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ape_kernels.geometry import AxisBlend, cells_of
from ape_kernels.program import PatchProgram
from ape_kernels.table import Column, Opcode, PackedProgram

Place = torch.device | None
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def expect(
    value: object, name: str, dtype: torch.dtype | tuple[torch.dtype, ...], shape: tuple[int | str, ...], place: Place
) -> Tensor:
    """`value`, contiguous, if it is a tensor like that: kernels read memory as if it were.

    dtype: one, or several of which one is right. shape: its sides; a letter stands for any. place: its device, None
    for any.
    Raises TypeError for what is no tensor, ValueError for another dtype, shape or device.
    """
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if isinstance(value, Tensor) and value.dtype in dtypes and (place is None or value.device == place):
        sides = value.shape
        if len(shape) == len(sides):
            for side, got in zip(shape, sides, strict=True):
                if side != got and not isinstance(side, str):
                    break
            else:
                return value.contiguous()
    kinds = " or ".join(_name(each) for each in dtypes)
    where = "" if place is None else f" on {place}"
    expected = f"{kinds} [{', '.join(map(str, shape))}]{where}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, {expected}, got {type(value).__name__}")
    raise ValueError(f"{name}: expected {expected}, got {value.dtype} {list(value.shape)} on {value.device}")


def expect_range(values: Tensor, name: str, low: int, high: int) -> None:
    """Raises ValueError unless all numbers are from `low` to `high`.

    On a CPU alone, where it costs microseconds; other devices would have to be waited for, and their kernels hold
    what they read in the range.
    """
    if values.device.type == "cpu":
        _expect_numbers(values.numpy(), name, low, high)


def _expect_numbers(numbers: NDArray[Any], name: str, low: int, high: int) -> None:
    if numbers.size:
        least, most = int(numbers.min()), int(numbers.max())
        if not low <= least <= most <= high:
            raise ValueError(f"{name}: expected {low} to {high}, got {least} to {most}")


def checked_program(program: list[Tensor], place: torch.device) -> PackedProgram:
    """Table and weights as they are packed, for tensors on `place`.

    Raises ValueError for tensors that no `pack` made. What stands in the table is checked where it is read.
    """
    table, weights = program
    expect(table, "table", torch.int32, ("rows", len(Column)), torch.device("cpu"))
    if weights.device != place:
        raise ValueError(f"weights: expected on {place}, packed for it, got {weights.device}")
    expect(weights, "weights", WEIGHT_DTYPES, ("N",), place)
    return PackedProgram(table, weights)


def checked_exits(exit_at: object, name: str, count: int, packed: PackedProgram, place: torch.device) -> Tensor | None:
    """`exit_at` if it is None or says of each of `count` patches after which stage it leaves."""
    if exit_at is None:
        return None
    ids = expect(exit_at, name, torch.int64, (count,), place)
    stages = int((packed.table.numpy()[:, Column.OPCODE] == Opcode.STAGE).sum())
    expect_range(ids, name, 0, stages - 1)
    return ids


def checked_starts(starts: Tensor, name: str, patch: int, side: int, place: torch.device) -> Tensor:
    """First rows or columns of patches that lie within a side of the image."""
    if not 1 <= patch <= side:
        raise ValueError(f"{name}: expected patches of 1 to {side} pixels, got {patch}")
    starts = expect(starts, name, torch.int32, ("R",), place)
    expect_range(starts, name, 0, side - patch)
    return starts


def checked_blend(blend: list[Tensor], name: str, patches: int, patch: int, place: torch.device) -> AxisBlend:
    """Which of so many patches of so many pixels cover each pixel of one axis."""
    index, weight = blend
    index = expect(index, f"{name} index", torch.int32, ("K", 2, "size"), place)
    weight = expect(weight, f"{name} weight", torch.float32, (index.shape[0], index.shape[2]), place)
    if index.device.type == "cpu":
        for part, most in ((0, patches), (1, patch)):
            _expect_numbers(index.numpy()[:, part], f"{name} index", 0, most - 1)
    return AxisBlend(index, weight)


def check_cells(exit_at: object, name: str, image: Tensor, cell: int) -> Tensor:
    """`exit_at` if it is int64 ``[B, R, K]``, one number per cell of images ``[B, C, H, W]``."""
    batch, _, height, width = image.shape
    return expect(exit_at, name, torch.int64, (batch, *cells_of(height, width, cell)), image.device)


def checked_depths(exit_at: object, name: str, image: Tensor, cell: int, stages: int) -> Tensor:
    """`exit_at` if it says of every cell of the images how far it runs: -1, or a stage.

    Raises TypeError for what is no tensor, ValueError as `check_cells` does and for a stage that there is not.
    """
    exit_at = check_cells(exit_at, name, image, cell)
    check_stages(exit_at, name, -1, stages)
    return exit_at


def check_stages(exit_at: Tensor, name: str, lowest: int, stages: int) -> None:
    """Raises ValueError for a stage that there is not, on any device."""
    if exit_at.numel() and not lowest <= int(exit_at.min()) <= int(exit_at.max()) <= stages - 1:
        got = f"{int(exit_at.min())} to {int(exit_at.max())}"
        raise ValueError(f"{name}: expected {lowest} to {stages - 1}, got {got}")


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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
