"""The operations on patches, as torch sees them. Each call is checked and logged here, then run by the named backend.

The torch, triton and cuda backends share the device type CUDA, and PyTorch's dispatcher alone cannot tell them apart.
Therefore each operation exists once and takes the backend by name. A schema knows tensors, numbers and lists of them:
what belongs together is one list in the order of its type's fields. `program` is a `PackedProgram` made by that
backend's `pack`. `ape_kernels.run` has the operations on whole images, which call these.

    P  patches            [C, h, w]  channels, height, width of a patch
    s  upscale factor     R, K       patch rows and columns of an image

Nothing here is differentiable; a call detaches.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ape_kernels.autocast import without_autocast
from ape_kernels.backends import choose_for_patches, get_backend
from ape_kernels.backends.protocol import (
    LEVELS,
    STATISTICS,
    Depths,
    Exits,
    FitTensors,
    KeepingBackend,
    Kept,
    LevelsPicture,
    PatchResults,
    Picture,
    TiledBackend,
    Tiling,
)
from ape_kernels.brief import brief
from ape_kernels.geometry import AxisBlend
from ape_kernels.inputs import checked_blend, checked_exits, checked_program, checked_starts, expect, expect_range
from ape_kernels.table import PackedProgram

IMAGE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of split and merge, which compute little

_LIBRARY = torch.library.Library("ape_kernels", "DEF")
_LOG = logging.getLogger("ape_kernels")


def register(name: str, operation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make `operation` known to torch as ``torch.ops.ape_kernels.<name>``. Its annotations give the schema.

    fake: takes the same arguments and gives empty tensors of the promised shapes and dtypes.
    """
    _LIBRARY.define(name + torch.library.infer_schema(operation, mutates_args=()))
    _LIBRARY.impl(name, operation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ape_kernels::{name}", fake, lib=_LIBRARY)


def run_patches(
    patches: Tensor,
    program: list[Tensor],
    boundary: float,
    exit_at: Tensor | None,
    upscale: int,
    out_channels: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole forward of every patch.

    patches: float32 ``[P, C, h, w]``, on the device of the program's weights. boundary, exit_at: see `Exits`.
    upscale, out_channels: of the program. backend: the one that packed.
    Returns sr, exit_index and capacity as in `PatchResults`.

    Raises ValueError for tensors of another dtype, shape or device, and for a malformed table.
    """
    out = PatchResults.empty(patches, upscale, out_channels)
    fill_patches(out, patches, checked_program(program, patches.device), Exits(boundary, exit_at), backend)
    return out


def fill_patches(out: PatchResults, patches: Tensor, packed: PackedProgram, exits: Exits, backend: str) -> None:
    """`run_patches` that writes into existing tensors. They are contiguous and as `PatchResults` describes them."""
    place = packed.weights.device
    patches = expect(patches, "patches", torch.float32, ("P", "C", "h", "w"), place)
    exit_at = checked_exits(exits.exit_at, "exit_at", len(patches), packed, place)
    _call(backend, "run_patches", packed, patches, Exits(exits.boundary, exit_at), out)


def run_stage(
    features: Tensor,
    active: Tensor,
    program: list[Tensor],
    stage: int,
    boundary: float,
    exit_at: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One stage and its exit for the patches `active`.

    features: float32 ``[P, C, h, w]``, the stage's source buffer. active: int64 ``[A]``, rows of `features`.
    stage: counted from 0. The other arguments are as for `run_patches`.
    Returns features, ids, capacity and n_left as in `StageResults`.

    Raises ValueError as `run_patches` does, and for an unknown stage.
    """
    place = features.device
    packed = checked_program(program, place)
    features = expect(features, "features", torch.float32, ("P", "C", "h", "w"), place)
    active = expect(active, "active", torch.int64, ("A",), place)
    expect_range(active, "active", 0, len(features) - 1)
    exits = Exits(boundary, checked_exits(exit_at, "exit_at", len(features), packed, place))
    return _call(backend, "run_stage", packed, stage, features, active, exits)


def split(
    image: Tensor, row_start: Tensor, column_start: Tensor, patch_height: int, patch_width: int, backend: str
) -> Tensor:
    """Cut images ``[B, C, H, W]`` into patches ``[B * R * K, C, patch_height, patch_width]`` of the same dtype.

    row_start, column_start: int32 ``[R]`` and ``[K]``, the first image row and column of the patches.
    """
    image = expect(image, "image", IMAGE_DTYPES, ("B", "C", "H", "W"), None)
    height, width = image.shape[2:]
    row_start = checked_starts(row_start, "row_start", patch_height, height, image.device)
    column_start = checked_starts(column_start, "column_start", patch_width, width, image.device)
    return _call(backend, "split", image, row_start, column_start, (patch_height, patch_width))


def merge(
    patches: Tensor, rows: list[Tensor], columns: list[Tensor], batch: int, patch_rows: int, backend: str
) -> Tensor:
    """Blend patches ``[B * R * K, C, ph, pw]`` to images ``[B, C, H, W]`` of the same dtype.

    The weighted sums are float32 in a fixed order. rows, columns: see `AxisBlend`. batch, patch_rows: B and R.
    """
    patches = expect(patches, "patches", IMAGE_DTYPES, ("P", "C", "h", "w"), None)
    count = batch * patch_rows
    if count < 1 or len(patches) % count:
        raise ValueError(f"patches: expected a multiple of {batch} x {patch_rows}, got {len(patches)}")
    row_blend = checked_blend(rows, "rows", patch_rows, patches.shape[2], patches.device)
    column_blend = checked_blend(columns, "columns", len(patches) // count, patches.shape[3], patches.device)
    return _call(backend, "merge", patches, row_blend, column_blend, batch, patch_rows)


def run_image(
    packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture, backend: str
) -> None:
    """Whole images on shared feature maps, into `picture`. Tensors as in `Depths` and `Picture`, checked."""
    _call(backend, "run_image", packed, sharing, image, depths, picture)


def run_levels(
    packed: PackedProgram, sharing: Tensor, fold: int, depths: Depths, picture: LevelsPicture, backend: str
) -> None:
    """One image on shared feature maps, as whole numbers, into `picture`; checked as those of `run_image`."""
    _call(backend, "run_levels", packed, sharing, fold, depths, picture)


def image_bytes(packed: PackedProgram, backend: str) -> int:
    """Memory that `run_image` takes for each pixel of its image; 0 where the backend limits its memory itself."""
    return get_backend(backend).image_bytes(packed)


def tiling(packed: PackedProgram, backend: str) -> Tiling | None:
    """As `TiledBackend.tiling`; None where the last bits of a picture may depend on all of the image."""
    found = get_backend(backend)
    return found.tiling(packed) if isinstance(found, TiledBackend) else None


def keep(packed: PackedProgram, sharing: Tensor, sides: tuple[int, int], backend: str) -> Kept | None:
    """As `KeepingBackend.keep`; None too where the backend runs whole images alone."""
    found = get_backend(backend)
    return found.keep(packed, sharing, sides) if isinstance(found, KeepingBackend) else None


def statistics(image: Tensor, cell: int, value_range: float, backend: str) -> Tensor:
    """What a plan is made from: of each cell of `cell` x `cell` pixels, the last ones cut by the edge, 11 numbers.

    image: float32 ``[B, C, H, W]``. value_range: what white is; 1 is meant by it below. Returns float32
    ``[B, R, K, 11]``. With four 3x3 filters of the luma (Laplacian, second derivative across of that downward, second
    derivatives across and downward): log of the root mean square of each, then log of the fourth root of the
    mean fourth power of each; log of the root mean square of the Laplacians of red and blue less green; the mean luma.
    A cell is filtered with the pixels around it, those around the image being as at its border. Mean squares count as
    at least 1e-8. Of images without three channels the luma is the mean of the channels, and there are no colours.
    backend: the one that computes, if it can; else the first that can.

    Raises ValueError for a tensor of another dtype or shape.
    """
    image = expect(image, "image", torch.float32, ("B", "C", "H", "W"), None)
    if 0 in image.shape[1:]:
        raise ValueError(f"image: expected C, H and W at least 1, got {list(image.shape)}")
    if cell < 1:
        raise ValueError(f"cell: expected at least 1 pixel, got {cell}")
    name = choose_for_patches(backend, image.device, image.dtype)  # here: what is traced cannot choose
    return _call(name, "statistics", image, cell, value_range)


def predict(statistics: Tensor, fit: list[Tensor], parts: int, backend: str) -> tuple[Tensor, Tensor]:
    """What is expected of the candidates for each cell: fidelity and level, as in `Predictions`.

    statistics: float32 ``[B, R, K, 11]``, as `statistics` gives them. fit: as in `FitTensors`, on the same device.
    parts: cells along each side of those squares over which the kind of a cell is averaged. Every value is computed by
    itself in a fixed order: it depends on neither batch nor threads.
    """
    place = statistics.device
    statistics = expect(statistics, "statistics", torch.float32, ("B", "R", "K", STATISTICS), place)
    given = FitTensors(*fit)
    kinds, candidates = len(given.kinds) + 1, len(given.quadratic)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "deviation", "low", "high"), (STATISTICS,)) | {
        "precision": (STATISTICS, STATISTICS),
        "leverage": (),
        "quadratic": (candidates, STATISTICS + 1, STATISTICS + 1),
        "kinds": (kinds - 1,),
        "needed": (kinds, candidates, LEVELS),
    }
    tensors = FitTensors(
        *(expect(tensor, name, torch.float32, shapes[name], place) for name, tensor in given._asdict().items())
    )
    name = choose_for_patches(backend, statistics.device, statistics.dtype)
    return _call(name, "predict", statistics, tensors, parts)


def _fake_predict(statistics: Tensor, fit: list[Tensor], parts: int, backend: str) -> tuple[Tensor, Tensor]:
    batch, rows, columns, _ = statistics.shape
    shape = (batch, rows, columns, FitTensors(*fit).needed.shape[1])
    return statistics.new_empty(shape), statistics.new_empty(shape)


def _fake_run_patches(
    patches: Tensor, program: list[Tensor], boundary: float, exit_at: Any, upscale: int, out_channels: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return PatchResults.empty(patches, upscale, out_channels)


def _fake_run_stage(features: Tensor, active: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = features.new_empty(len(active), *features.shape[1:])
    return out, torch.empty_like(active), features.new_empty(len(active)), active.new_empty(1)


def _fake_split(image: Tensor, row_start: Tensor, column_start: Tensor, height: int, width: int, _: str) -> Tensor:
    return image.new_empty(image.shape[0] * len(row_start) * len(column_start), image.shape[1], height, width)


def _fake_merge(patches: Tensor, rows: list[Tensor], columns: list[Tensor], batch: int, *_: Any) -> Tensor:
    height, width = (AxisBlend(*axis).index.shape[2] for axis in (rows, columns))
    return patches.new_empty(batch, patches.shape[1], height, width)


def _fake_statistics(image: Tensor, cell: int, value_range: float, backend: str) -> Tensor:
    batch, _, height, width = image.shape
    return image.new_empty(batch, (height + cell - 1) // cell, (width + cell - 1) // cell, STATISTICS)


def _call(backend: str, operation: str, *args: Any) -> Any:
    """Log the call and run it on the named backend, without gradient and autocast. APE_SYNC=1: wait for the device."""
    if os.environ.get("APE_LOG"):
        _LOG.warning("%s on %s: %s", operation, backend, ", ".join(map(brief, args)))
    with torch.no_grad(), without_autocast():
        result = getattr(get_backend(backend), operation)(*args)
    if os.environ.get("APE_SYNC") == "1" and torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


register("run_patches", run_patches, _fake_run_patches)
register("run_stage", run_stage, _fake_run_stage)
register("split", split, _fake_split)
register("merge", merge, _fake_merge)
register("statistics", statistics, _fake_statistics)
register("predict", predict, _fake_predict)
