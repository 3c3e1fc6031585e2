"""The operations, as torch sees them: schemas and fake kernels, the one place where shapes are promised.

Every operation exists once for torch and takes the backend by name: torch, triton and CUDA backends
share the device type CUDA, so the dispatcher alone could not tell them apart. Arguments are tensors
and numbers; `table` and `weights` come from the same backend's `pack`.

    P  patches            [C, h, w]  channels, height, width of a patch
    s  upscale factor     R, K       patch rows and columns of an image

Nothing here is differentiable; a call detaches.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from ape_kernels.backends import get_backend
from ape_kernels.budget import run_patches_within
from ape_kernels.image import Cut, upscale_in_patches
from ape_kernels.patches import Blend, folded_geometry, patch_count

_LIBRARY = torch.library.Library("ape_kernels", "DEF")
_LOG = logging.getLogger("ape_kernels")

_SCHEMAS = {
    "upscale": "(Tensor image, Tensor table, Tensor weights, float boundary, SymInt patch_size, SymInt overlap, "
    "str blend, int upscale, int out_channels, str backend, int fold=1) -> "
    "(Tensor sr, Tensor exit_index, Tensor capacity)",
    "upscale_within": "(Tensor image, Tensor table, Tensor weights, Tensor frame_table, Tensor frame_weights, "
    "int[] stage_flops, float boundary, float budget, SymInt patch_size, SymInt overlap, str blend, int upscale, "
    "int out_channels, str backend, int fold=1) -> (Tensor sr, Tensor exit_index, Tensor capacity)",
    "run_patches": "(Tensor patches, Tensor table, Tensor weights, float boundary, Tensor? exit_at, int upscale, "
    "int out_channels, str backend) -> (Tensor sr, Tensor exit_index, Tensor capacity)",
    "run_stage": "(Tensor features, Tensor active, Tensor table, Tensor weights, int stage, float boundary, "
    "Tensor? exit_at, str backend) -> (Tensor features, Tensor ids, Tensor capacity, Tensor n_left)",
    "split": "(Tensor image, Tensor row_start, Tensor column_start, SymInt patch_height, SymInt patch_width, "
    "str backend) -> Tensor",
    "merge": "(Tensor patches, Tensor row_index, Tensor row_weight, Tensor column_index, Tensor column_weight, "
    "SymInt batch, SymInt rows, str backend) -> Tensor",
}


def upscale(
    image: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    patch_size: int,
    overlap: int,
    blend: Blend,
    upscale: int,
    out_channels: int,
    backend: str,
    fold: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole images: fold, split, `run_patches`, merge; large ones band by band, which bounds memory beyond the picture.

    image: float32 ``[B, C, H, W]``. fold: squares of fold x fold pixels become the pixels that the program reads;
    `upscale` counts from those, s = upscale / fold. Returns sr float32 ``[B, out_channels, s * H, s * W]`` and, on
    the patch grid, exit_index int64 ``[B, R, K]`` and capacity float32 ``[B, R, K]``.
    """
    settings = (table, weights, boundary, None, upscale, out_channels, backend)
    cut = Cut(patch_size, overlap, blend, upscale, out_channels, backend, fold)
    _check_patches(image, "image")
    return upscale_in_patches(image, cut, lambda patches, _: run_patches(patches, *settings), in_bands=True)


def upscale_within(
    image: Tensor,
    table: Tensor,
    weights: Tensor,
    frame_table: Tensor,
    frame_weights: Tensor,
    stage_flops: list[int],
    boundary: float,
    budget: float,
    patch_size: int,
    overlap: int,
    blend: Blend,
    upscale: int,
    out_channels: int,
    backend: str,
    fold: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `upscale`, each image on its own within a budget (`run_patches_within`).

    frame_table, frame_weights, stage_flops, budget: see `ape_kernels.budget.run_patches_within`.
    """
    settings = (table, weights, frame_table, frame_weights, stage_flops, boundary, budget, upscale, out_channels)

    def run(patches: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            images = [run_patches_within(part, *settings, backend) for part in patches.split(count)]
        sr, exit_index, capacity = (torch.cat(part) for part in zip(*images, strict=True))
        return sr, exit_index, capacity

    _check_patches(image, "image")
    cut = Cut(patch_size, overlap, blend, upscale, out_channels, backend, fold)
    return upscale_in_patches(image, cut, run, in_bands=False)


def run_patches(
    patches: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    exit_at: Tensor | None,
    upscale: int,
    out_channels: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole forward of every patch.

    patches: float32 ``[P, C, h, w]`` contiguous. boundary: a patch leaves at the first exit whose
    prediction reaches it. exit_at: int64 ``[P]``, or None; the stage after which each patch leaves whatever
    is predicted. Returns sr float32 ``[P, out_channels, s * h, s * w]``, exit_index int64 ``[P]`` (stage after
    which the patch left) and capacity float32 ``[P]`` (1 - the last prediction; NaN without exits).
    """
    _check_patches(patches, "patches")
    _check_weights(weights, patches.device)
    exit_at = _checked_ids(exit_at, "exit_at", len(patches), patches.device)
    return _call("run_patches", backend, patches, table, weights, boundary, exit_at, upscale, out_channels)


def run_stage(
    features: Tensor,
    active: Tensor,
    table: Tensor,
    weights: Tensor,
    stage: int,
    boundary: float,
    exit_at: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One stage and its exit for the patches `active`.

    features: float32 ``[P, C, h, w]``, the stage's source buffer. active: int64 ``[A]``, rows of `features`.
    exit_at: int64 ``[P]`` or None, as in `run_patches`. Returns features ``[A, C, h, w]`` and capacity
    ``[A]``: the patches that leave stand first, in the order of `active`, those that stay after them, in reverse
    order; ids int64 ``[A]``, the rows of the input they belong to; n_left int64 ``[1]``, how many leave.
    """
    _check_patches(features, "features")
    _check_weights(weights, features.device)
    active = _checked_ids(active, "active", None, features.device)
    exit_at = _checked_ids(exit_at, "exit_at", len(features), features.device)
    return _call("run_stage", backend, features, active, table, weights, stage, boundary, exit_at)


def split(
    image: Tensor, row_start: Tensor, column_start: Tensor, patch_height: int, patch_width: int, backend: str
) -> Tensor:
    """``[B, C, H, W]`` to ``[B * R * K, C, patch_height, patch_width]``; starts int32 ``[R]`` and ``[K]``."""
    return _call("split", backend, image, row_start, column_start, patch_height, patch_width)


def merge(
    patches: Tensor,
    row_index: Tensor,
    row_weight: Tensor,
    column_index: Tensor,
    column_weight: Tensor,
    batch: int,
    rows: int,
    backend: str,
) -> Tensor:
    """``[B * R * K, C, ph, pw]`` to ``[B, C, H, W]``, weighted sums in float32 in a fixed order.

    row_index int32 ``[NY, 2, H]``, row_weight float32 ``[NY, H]`` and the same for columns, as in `AxisBlend`.
    batch, rows: B and R.
    """
    return _call("merge", backend, patches, row_index, row_weight, column_index, column_weight, batch, rows)


def _fake_upscale(
    image: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    patch_size: int,
    overlap: int,
    blend: str,
    upscale: int,
    out_channels: int,
    backend: str,
    fold: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = image.shape
    sr = image.new_empty(batch, out_channels, height * upscale // fold, width * upscale // fold)
    patch_size, overlap = folded_geometry(patch_size, overlap, fold)
    grid = (batch, *(patch_count((side + fold - 1) // fold, patch_size, overlap) for side in (height, width)))
    return sr, image.new_empty(grid, dtype=torch.int64), image.new_empty(grid)


def _fake_upscale_within(
    image: Tensor,
    table: Tensor,
    weights: Tensor,
    frame_table: Tensor,
    frame_weights: Tensor,
    stage_flops: list[int],
    boundary: float,
    budget: float,
    *geometry: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_upscale(image, table, weights, boundary, *geometry)


def _fake_run_patches(
    patches: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    exit_at: Any,
    upscale: int,
    out_channels: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    count, _, height, width = patches.shape
    sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
    return sr, patches.new_empty(count, dtype=torch.int64), patches.new_empty(count)


def _fake_run_stage(
    features: Tensor,
    active: Tensor,
    table: Tensor,
    weights: Tensor,
    stage: int,
    boundary: float,
    exit_at: Any,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = features.new_empty(len(active), *features.shape[1:])
    return out, torch.empty_like(active), features.new_empty(len(active)), active.new_empty(1)


def _fake_split(
    image: Tensor, row_start: Tensor, column_start: Tensor, patch_height: int, patch_width: int, backend: str
) -> Tensor:
    count = image.shape[0] * row_start.shape[0] * column_start.shape[0]
    return image.new_empty(count, image.shape[1], patch_height, patch_width)


def _fake_merge(
    patches: Tensor,
    row_index: Tensor,
    row_weight: Tensor,
    column_index: Tensor,
    column_weight: Tensor,
    batch: int,
    rows: int,
    backend: str,
) -> Tensor:
    return patches.new_empty(batch, patches.shape[1], row_index.shape[2], column_index.shape[2])


def _call(operation: str, backend: str, *args: Any) -> Any:
    """Log, run on the named backend without gradient, and with APE_SYNC=1 wait for the device."""
    if os.environ.get("APE_LOG"):
        _LOG.warning("%s on %s: %s", operation, backend, ", ".join(map(_describe, args)))
    with torch.no_grad():
        result = getattr(get_backend(backend), operation)(*args)
    if os.environ.get("APE_SYNC") == "1" and torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}@{value.device}"
    return repr(value)


def _check_patches(patches: Tensor, name: str) -> None:
    if patches.ndim != 4 or patches.dtype != torch.float32:
        raise ValueError(f"{name}: expected float32 [P, C, h, w], got {patches.dtype} {list(patches.shape)}")


def _check_weights(weights: Tensor, device: torch.device) -> None:
    if weights.device != device:
        raise ValueError(f"weights: expected on {device}, packed for it, got {weights.device}")


def _checked_ids(ids: Tensor | None, name: str, count: int | None, device: torch.device) -> Tensor | None:
    """`ids`, contiguous: a kernel that reads them elsewhere, or strided, would read what is not theirs."""
    if ids is None:
        return None
    if ids.dtype != torch.int64 or ids.ndim != 1 or count not in (None, len(ids)) or ids.device != device:
        size = "A" if count is None else count
        got = f"{ids.dtype} {list(ids.shape)} on {ids.device}"
        raise ValueError(f"{name}: expected int64 [{size}] on {device}, got {got}")
    return ids.contiguous()


for _name, _implementation, _fake in (
    ("upscale", upscale, _fake_upscale),
    ("upscale_within", upscale_within, _fake_upscale_within),
    ("run_patches", run_patches, _fake_run_patches),
    ("run_stage", run_stage, _fake_run_stage),
    ("split", split, _fake_split),
    ("merge", merge, _fake_merge),
):
    _LIBRARY.define(_name + _SCHEMAS[_name])
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ape_kernels::{_name}", _fake, lib=_LIBRARY)
