"""What a backend is given, what it gives back, and the functions that a backend folder provides."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ape_kernels.geometry import AxisBlend
from ape_kernels.program import PatchProgram
from ape_kernels.table import PackedProgram


class Exits(NamedTuple):
    """What decides where patches leave.

    boundary: a patch leaves at the first exit whose prediction reaches it; infinity for never early.
    exit_at: int64 ``[P]``, the stage after which each patch leaves, whatever is predicted; None for as predicted.
    """

    boundary: float
    exit_at: Tensor | None = None


class PatchResults(NamedTuple):
    """Of `run_patches`.

    sr: float32 ``[P, out_channels, s * h, s * w]``. exit_index: int64 ``[P]``, the stage after which the patch left.
    capacity: float32 ``[P]``, 1 minus the last prediction; NaN without exits.
    """

    sr: Tensor
    exit_index: Tensor
    capacity: Tensor

    @classmethod
    def empty(cls, patches: Tensor, upscale: int, out_channels: int) -> PatchResults:
        """To be written, for patches ``[P, C, h, w]``."""
        count, _, height, width = patches.shape
        sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
        return cls(sr, patches.new_empty(count, dtype=torch.int64), patches.new_empty(count))


class StageResults(NamedTuple):
    """Of `run_stage`: patches that leave first, as in `active`, then those that stay, in reverse order.

    features: float32 ``[A, C, h, w]``. ids: int64 ``[A]``, the rows of the input that they are.
    capacity: float32 ``[A]``, 1 minus the prediction. n_left: int64 ``[1]``, how many leave.
    """

    features: Tensor
    ids: Tensor
    capacity: Tensor
    n_left: Tensor


class Backend(Protocol):
    """A backend folder. What the operations compute: `ape_kernels.ops`. Tensors have been checked there."""

    def unavailable(self) -> str | None:
        """None if this machine can run the backend at all, else the reason."""
        ...

    def supports(self, program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if `program` can run on `device` in `dtype`, else the reason."""
        ...

    def supports_patches(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if split and merge can run on tensors of `dtype` on `device`, else the reason."""
        ...

    def pack(self, program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
        """The program in this backend's layout; `dtype` is that of the operands of matrix products."""
        ...

    def run_patches(self, packed: PackedProgram, patches: Tensor, exits: Exits, out: PatchResults) -> None:
        """Write the whole forward of every patch to `out`."""
        ...

    def run_stage(
        self, packed: PackedProgram, stage: int, features: Tensor, active: Tensor, exits: Exits
    ) -> StageResults:
        """Run one stage and its exit for the rows `active` of `features`."""
        ...

    def split(self, image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
        """Cut images into patches."""
        ...

    def merge(self, patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
        """Blend patches into images."""
        ...
