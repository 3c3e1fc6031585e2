"""What a backend is given, what it gives back, and the functions that a backend folder provides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from ape_kernels.geometry import AxisBlend
from ape_kernels.program import PatchProgram
from ape_kernels.progress import Progress
from ape_kernels.table import PackedProgram

STATISTICS = 11  # numbers that `Backend.statistics` gives of each cell
FIRST, STEP, LEVELS = 20.0, 2.5, 25  # fidelities in dB for which `FitTensors.needed` is kept; between them it is linear
UNLIKE = 1000.0  # dB by which levels fall where nothing fitted resembles a cell: it is the last that a budget lets go


class Exits(NamedTuple):
    """What decides where patches leave.

    boundary: a patch leaves at the first exit whose prediction reaches it. With infinity none leaves early.
    exit_at: int64 ``[P]``, the stage after which each patch leaves, whatever is predicted. None: predictions decide.
    """

    boundary: float
    exit_at: Tensor | None = None


class PatchResults(NamedTuple):
    """What `run_patches` returns.

    sr: float32 ``[P, out_channels, s * h, s * w]``. exit_index: int64 ``[P]``, the stage after which the patch left.
    capacity: float32 ``[P]``, 1 minus the last prediction; NaN without exits.
    """

    sr: Tensor
    exit_index: Tensor
    capacity: Tensor

    @classmethod
    def empty(cls, patches: Tensor, upscale: int, out_channels: int) -> PatchResults:
        """Tensors to be filled, for patches ``[P, C, h, w]``."""
        count, _, height, width = patches.shape
        sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
        return cls(sr, patches.new_empty(count, dtype=torch.int64), patches.new_empty(count))


class StageResults(NamedTuple):
    """What `run_stage` returns: patches that leave, in the order of `active`, then those that stay, in reverse order.

    features: float32 ``[A, C, h, w]``. ids: int64 ``[A]``, the rows of the input that they are.
    capacity: float32 ``[A]``, 1 minus the prediction. n_left: int64 ``[1]``, how many leave.
    """

    features: Tensor
    ids: Tensor
    capacity: Tensor
    n_left: Tensor


class Depths(NamedTuple):
    """How far each cell of an image runs, known before the run.

    exit_at: int64 ``[B, R, K]``, the stage after which a cell leaves, -1 where the picture is interpolated; None for
    full depth everywhere. cell: sides of the cells, in pixels of the program's input; the last of a row or column are
    cut off by the edge. ring: pixels around the cells that run which go through the first stage with them.
    """

    exit_at: Tensor | None
    cell: int
    ring: int


class Kept(Protocol):
    """What a backend keeps of an image, so that of the next one only what changed is computed (`KeepingBackend`)."""

    @property
    def renewed(self) -> float:
        """Share of the picture that the last run computed, from 0 to 1."""
        ...


class Picture(NamedTuple):
    """Where the result of an image goes, and what cells are interpolated from.

    out: float32 ``[B, out_channels, scale * H, scale * W]``. colours: float32 ``[B, C, H, W]``, not folded. Both are
    contiguous.
    progress: told how far the run is by a backend that takes its time before it returns.
    kept: from `KeepingBackend.keep`, B being 1: `out` still holds what the run before with it has written.
    """

    out: Tensor
    colours: Tensor
    scale: int
    progress: Progress | None = None
    kept: Kept | None = None


class LevelsPicture(NamedTuple):
    """As `Picture`, of one image in whole numbers.

    image: uint8 or uint16 ``[H, W, C]``, contiguous, its sides divisible by the fold. out: of the same dtype, at most
    ``[scale * H, scale * W, 3 or 1]``; the channels of a pixel side by side. colours: float32 ``[1, C, H, W]``,
    contiguous; None for the image itself. level_range: what the greatest number is for the network. kept: as there.
    """

    image: NDArray[Any]
    out: NDArray[Any]
    colours: Tensor | None
    level_range: float
    scale: int
    progress: Progress | None
    kept: Kept | None = None


class FitTensors(NamedTuple):
    """What predictions are made from (`ape_kernels.plan.ExitFit`), float32; F statistics, C candidates.

    mean, deviation: ``[F]``, of the statistics fitted. low, high: ``[F]``, their range. precision: ``[F, F]``, inverse
    of their correlation. leverage: ``[]``, the highest among them: z' precision z, with z the standardised statistics.
    quadratic: ``[C, F + 1, F + 1]``: with a 1 behind z, z' Q z is the fidelity in dB. kinds: ``[k - 1]``, ascending:
    what separates the kinds of cells. needed: ``[k, C, LEVELS]``: fidelity in dB from which a candidate serves, by what
    is asked for; ascending.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    precision: Tensor
    leverage: Tensor
    quadratic: Tensor
    kinds: Tensor
    needed: Tensor


class Predictions(NamedTuple):
    """What is expected of the cells of images, for all C candidates but full depth: interpolation, exits 0 to C - 2.

    fidelity: float32 ``[B, R, K, C]``, dB, as expected. level: float32 ``[B, R, K, C]``, the highest fidelity in dB
    that can be asked for so that the candidate serves; below all that can be asked where no fitted cell is alike.
    """

    fidelity: Tensor
    level: Tensor


class Backend(Protocol):
    """A backend folder. What the operations compute: `ape_kernels.ops`. Tensors have been checked there."""

    def unavailable(self) -> str | None:
        """None if this machine can run the backend at all, else the reason."""
        ...

    def supports(self, program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if `program` can run on `device` in `dtype`, else the reason."""
        ...

    def supports_images(self, program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if `program`, which `supports` accepts, can run on shared feature maps there, else the reason."""
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

    def run_image(
        self, packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture
    ) -> None:
        """Write the pictures of images ``[B, C, H, W]``, folded. They run on shared maps (`ape_kernels.sharing`)."""
        ...

    def image_bytes(self, packed: PackedProgram) -> int:
        """Memory that `run_image` takes for each pixel of its image; 0 where it bounds its memory itself."""
        ...

    def split(self, image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
        """Cut images into patches."""
        ...

    def merge(self, patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
        """Blend patches into images."""
        ...

    def statistics(self, image: Tensor, cell: int, value_range: float) -> Tensor:
        """What a plan is made from: some numbers of each cell of an image."""
        ...

    def predict(self, statistics: Tensor, fit: FitTensors, parts: int) -> Predictions:
        """What is expected of the candidates for each cell."""
        ...


class Tiling(NamedTuple):
    """How a backend runs images in tiles.

    side: pixels. beyond: for kernel sizes, pixels beyond a convolution's own reach that the last bits of a result
    depend on, as those of Winograd's tiles do.
    """

    side: int
    beyond: Mapping[int, int]


@runtime_checkable
class TiledBackend(Protocol):
    """A backend that runs images in tiles, each in the same way wherever it lies."""

    def tiling(self, packed: PackedProgram) -> Tiling:
        """Of an image that is cut at a multiple of the tiles, every bit far enough inside is the whole image's."""
        ...


@runtime_checkable
class LevelsBackend(Protocol):
    """A backend that reads and writes whole numbers besides."""

    def run_levels(
        self, packed: PackedProgram, sharing: Tensor, fold: int, depths: Depths, picture: LevelsPicture
    ) -> None:
        """`run_image` of one image in whole numbers. fold: squares of pixels that are pixels of the program."""
        ...


@runtime_checkable
class KeepingBackend(Protocol):
    """A backend that runs images which follow each other, and of each only what changed; bit for bit."""

    def keep(self, packed: PackedProgram, sharing: Tensor, sides: tuple[int, int]) -> Kept | None:
        """To be handed in with images of these sides, folded; None if it would take too much memory.

        After a run that failed everything is computed again. One run at a time.
        """
        ...
