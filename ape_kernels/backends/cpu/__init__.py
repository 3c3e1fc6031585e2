"""The cpu backend: native workers (csrc/cpu), one patch each, AVX-512, AVX2 or portable kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ape_kernels.backends.order import leaving_first
from ape_kernels.native import core, missing
from ape_kernels.program import ChannelAttention, Conv, Exit, Module, PatchProgram, Reconstruct, Step
from ape_kernels.table import PackedProgram
from ape_kernels.table import pack as pack_program

LANES = 16  # output channels are packed in groups of this many (csrc/cpu/kernels.h)


def unavailable() -> str | None:
    return missing()


def supports(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"runs on the CPU, not on {device}"
    if dtype != torch.float32:
        return f"computes in torch.float32, not {dtype}"
    opaque = [type(step.module).__name__ for step in program.steps() if isinstance(step, Module)]
    if opaque:
        return f"has no kernels for {', '.join(sorted(set(opaque)))}"
    return None


def supports_patches(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu" or dtype != torch.float32:
        return f"splits and merges torch.float32 on the CPU, not {dtype} on {device}"
    return None


def pack(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
    return pack_program(program, _layout, dtype=dtype, device=device)


def run_patches(
    patches: Tensor,
    table: Tensor,
    weights: Tensor,
    boundary: float,
    exit_at: Tensor | None,
    upscale: int,
    out_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    count, _, height, width = patches.shape
    patches = patches.contiguous()
    sr = patches.new_empty(count, out_channels, height * upscale, width * upscale)
    exit_index = torch.empty(count, dtype=torch.int64)
    capacity = torch.empty(count)
    core().cpu_run_patches(
        table.data_ptr(),
        len(table),
        weights.data_ptr(),
        len(weights),
        patches.data_ptr(),
        _pointer(exit_at),
        sr.data_ptr(),
        exit_index.data_ptr(),
        capacity.data_ptr(),
        count,
        height,
        width,
        boundary,
        torch.get_num_threads(),
    )
    return sr, exit_index, capacity


def run_stage(
    features: Tensor,
    active: Tensor,
    table: Tensor,
    weights: Tensor,
    stage: int,
    boundary: float,
    exit_at: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, _, height, width = features.shape
    features, active = features.contiguous(), active.contiguous()
    if len(active) and not 0 <= int(active.min()) <= int(active.max()) < rows:
        raise ValueError(f"active: expected rows from 0 to {rows - 1}, got {int(active.min())} to {int(active.max())}")
    out = features.new_empty(len(active), *features.shape[1:])
    capacity = torch.empty(len(active))
    leaves = torch.empty(len(active), dtype=torch.bool)
    core().cpu_run_stage(
        table.data_ptr(),
        len(table),
        weights.data_ptr(),
        len(weights),
        stage,
        features.data_ptr(),
        active.data_ptr(),
        _pointer(exit_at),
        out.data_ptr(),
        capacity.data_ptr(),
        leaves.data_ptr(),
        len(active),
        height,
        width,
        boundary,
        torch.get_num_threads(),
    )
    order = leaving_first(leaves)
    return out[order], active[order], capacity[order], leaves.sum()[None]


def split(image: Tensor, row_start: Tensor, column_start: Tensor, patch_height: int, patch_width: int) -> Tensor:
    batch, channels, height, width = image.shape
    rows, columns = len(row_start), len(column_start)
    patches = image.new_empty(batch * rows * columns, channels, patch_height, patch_width)
    core().cpu_split(
        image.data_ptr(),
        patches.data_ptr(),
        row_start.data_ptr(),
        column_start.data_ptr(),
        batch,
        channels,
        height,
        width,
        rows,
        columns,
        patch_height,
        patch_width,
        torch.get_num_threads(),
    )
    return patches


def merge(
    patches: Tensor,
    row_index: Tensor,
    row_weight: Tensor,
    column_index: Tensor,
    column_weight: Tensor,
    batch: int,
    rows: int,
) -> Tensor:
    count, channels, patch_height, patch_width = patches.shape
    height, width = row_index.shape[2], column_index.shape[2]
    columns = count // (batch * rows)
    image = patches.new_empty(batch, channels, height, width)
    core().cpu_merge(
        patches.data_ptr(),
        image.data_ptr(),
        row_index.data_ptr(),
        row_weight.data_ptr(),
        column_index.data_ptr(),
        column_weight.data_ptr(),
        batch,
        channels,
        height,
        width,
        rows,
        columns,
        patch_height,
        patch_width,
        len(row_index),
        len(column_index),
        torch.get_num_threads(),
    )
    return image


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _layout(step: Step) -> tuple[Tensor, Tensor]:
    """The cpu column of docs/program.md, "Weight layouts"."""
    match step:
        case Conv():
            bias = step.weight.new_zeros(len(step.weight)) if step.bias is None else step.bias
            return _lanes(step.weight[None]), _pad_lanes(bias[None])
        case Exit():
            return step.weight, step.bias
        case ChannelAttention():
            biases = torch.cat([step.squeeze_bias, step.expand_bias])
            return torch.cat([step.squeeze.flatten(), step.expand.flatten()]), biases
        case Reconstruct():
            return _lanes(step.tail.kernel.flatten(0, 1)), _pad_lanes(step.tail.bias.flatten(0, 1))


def _lanes(weight: Tensor) -> Tensor:
    """Kernels ``[V, C_out, C_in, k, k]`` to ``[V][C_out / 16][k * k][C_in][16]``, flat."""
    variants, out_channels, in_channels, size, _ = weight.shape
    padded = pad(weight, (0, 0, 0, 0, 0, 0, 0, -out_channels % LANES))
    grouped = padded.reshape(variants, -1, LANES, in_channels, size * size)
    return grouped.permute(0, 1, 4, 3, 2).flatten()


def _pad_lanes(bias: Tensor) -> Tensor:
    """Biases ``[V, C_out]``, each padded to whole groups, flat."""
    return pad(bias, (0, -bias.shape[1] % LANES)).flatten()
