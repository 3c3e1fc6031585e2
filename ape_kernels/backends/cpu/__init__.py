"""The cpu backend: native workers (csrc/cpu) that run one patch each, with AMX, AVX-512, AVX2 or portable kernels.

bfloat16 is used where it makes the CPU faster. Elsewhere that dtype is computed in float32.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ape_kernels.backends.cpu.winograd import transform
from ape_kernels.backends.native_calls import address, merge_call, program_arguments, split_call
from ape_kernels.backends.order import leaving_first
from ape_kernels.backends.protocol import (
    FIRST,
    LEVELS,
    STATISTICS,
    STEP,
    UNLIKE,
    Depths,
    Exits,
    FitTensors,
    Kept,
    LevelsPicture,
    PatchResults,
    Picture,
    Predictions,
    StageResults,
    Tiling,
)
from ape_kernels.geometry import AxisBlend
from ape_kernels.native import core, missing
from ape_kernels.program import ChannelAttention, Conv, Exit, PatchProgram, Reconstruct, Weighted
from ape_kernels.progress import run_watched
from ape_kernels.sharing import why_not_shared
from ape_kernels.table import Column, Fill, Opcode, PackedProgram, bias_of, matrices_and_biases
from ape_kernels.table import pack as pack_program

GROUP = 16  # output channels are packed in groups of this many (csrc/cpu/kernels.h)
SLICE = 32  # input channels of a bf16 convolution are packed in slices of this many
# Where bf16 products are faster than Winograd in float32, which is also more exact. EDSR 16x64, in ms per patch on one
# Xeon core: AMX 4.7 against 15.4, AVX512-BF16 90 against 15.4, AVX2 170 against 28. The last two run what was packed
# for AMX.
FAST_BF16 = ("amx",)
KEPT_BYTES = 2 << 30  # of strips, that are kept of an image for the next one
FEW_CHANNELS = 16  # convolutions with fewer input channels run directly and in float32


class Layout(IntEnum):
    """How a convolution's weights are laid out, and so which kernel runs it (csrc/cpu/kernels.h)."""

    DIRECT = 0
    WINOGRAD = 1
    BF16 = 2


def unavailable() -> str | None:
    return missing()


def supports(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"runs on the CPU, not on {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"computes in torch.float32 and torch.bfloat16, not {dtype}"
    if program.opaque:
        return f"has no kernels for {program.opaque}"
    return None


def supports_images(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    return why_not_shared(program)


def supports_patches(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu" or dtype != torch.float32:
        return f"splits and merges torch.float32 on the CPU, not {dtype} on {device}"
    return None


def pack(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
    # the buffer is float32 for every `dtype`: it holds bf16 weights two by two, and the rest exactly
    layout = partial(_weights, program, dtype)
    with torch.no_grad():
        packed = pack_program(program, layout, dtype=torch.float32, device=device)
    for row in packed.table:
        if row[Column.OPCODE] in (Opcode.CONV, Opcode.RECONSTRUCT):
            row[Column.MODE] += 2 * _layout(int(row[Column.KERNEL]), int(row[Column.IN_CHANNELS]), dtype)
    return packed


def run_patches(packed: PackedProgram, patches: Tensor, exits: Exits, out: PatchResults) -> None:
    count, _, height, width = patches.shape
    core().cpu_run_patches(
        **program_arguments(packed),
        patches=patches.data_ptr(),
        exit_at=address(exits.exit_at),
        sr=out.sr.data_ptr(),
        exit_index=out.exit_index.data_ptr(),
        capacity=out.capacity.data_ptr(),
        count=count,
        height=height,
        width=width,
        boundary=exits.boundary,
        threads=torch.get_num_threads(),
    )


def run_stage(packed: PackedProgram, stage: int, features: Tensor, active: Tensor, exits: Exits) -> StageResults:
    height, width = features.shape[2:]
    out = features.new_empty(len(active), *features.shape[1:])
    capacity = torch.empty(len(active), dtype=torch.float32, device="cpu")
    leaves = torch.empty(len(active), dtype=torch.bool, device="cpu")
    core().cpu_run_stage(
        **program_arguments(packed),
        stage=stage,
        features=features.data_ptr(),
        active=active.data_ptr(),
        exit_at=address(exits.exit_at),
        out=out.data_ptr(),
        capacity=capacity.data_ptr(),
        leaves=leaves.data_ptr(),
        count=len(active),
        height=height,
        width=width,
        boundary=exits.boundary,
        threads=torch.get_num_threads(),
    )
    order = leaving_first(leaves)
    return StageResults(out[order], active[order], capacity[order], leaves.sum()[None])


def run_image(packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture) -> None:
    count, _, height, width = image.shape
    arguments = dict(
        **_image_arguments(packed, sharing, depths, picture),
        folded=image.data_ptr(),
        sr=picture.out.data_ptr(),
        count=count,
        height=height,
        width=width,
        colours=picture.colours.data_ptr(),
        colour_channels=picture.colours.shape[1],
    )
    run_watched(core().cpu_run_image, arguments, picture.progress)


def run_levels(packed: PackedProgram, sharing: Tensor, fold: int, depths: Depths, picture: LevelsPicture) -> None:
    image, out = picture.image, picture.out
    height, width, channels = image.shape
    row, pixel, _ = (step // out.itemsize for step in out.strides)
    peak, factor = np.iinfo(out.dtype).max, picture.level_range
    levels = core().CpuLevels(
        image=image.ctypes.data,
        width=width,
        channels=channels,
        to_value=np.float32(factor / peak),
        picture=out.ctypes.data,
        row=row,
        pixel=pixel,
        rows=out.shape[0],
        columns=out.shape[1],
        shown=out.shape[2],
        to_level=np.float32(peak / factor),
        bytes=out.itemsize,
    )
    arguments = dict(
        **_image_arguments(packed, sharing, depths, picture),
        folded=0,
        sr=0,
        count=1,
        height=height // fold,
        width=width // fold,
        colours=address(picture.colours),
        colour_channels=channels,
        levels=levels,
    )
    run_watched(core().cpu_run_image, arguments, picture.progress)


def _image_arguments(
    packed: PackedProgram, sharing: Tensor, depths: Depths, picture: Picture | LevelsPicture
) -> dict[str, Any]:
    """What images of both kinds take alike."""
    return dict(
        **program_arguments(packed),
        sharing=sharing.data_ptr(),
        exit_at=address(depths.exit_at),
        cell=depths.cell,
        ring=depths.ring,
        scale=picture.scale,
        kept=picture.kept,
        threads=torch.get_num_threads(),
    )


def keep(packed: PackedProgram, sharing: Tensor, sides: tuple[int, int]) -> Kept | None:
    height, width = sides
    strips = dict(**program_arguments(packed), sharing=sharing.data_ptr(), height=height, width=width)
    return core().CpuKept() if core().cpu_kept_bytes(**strips) <= KEPT_BYTES else None


def image_bytes(packed: PackedProgram) -> int:
    return 0  # tiles stream through the image


def tiling(packed: PackedProgram) -> Tiling:
    # F(4x4, 3x3) and F(2x2, 5x5) compute 4 and 2 results in a row from the same 6 values
    return Tiling(core().cpu_image_tile(**program_arguments(packed)), {3: 3, 5: 1})


def split(image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    call = split_call(image, row_start, column_start, patch_shape)
    core().cpu_split(**call.arguments, threads=torch.get_num_threads())
    return call.result


def merge(patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
    call = merge_call(patches, rows, columns, batch, patch_rows)
    core().cpu_merge(**call.arguments, threads=torch.get_num_threads())
    return call.result


def statistics(image: Tensor, cell: int, value_range: float) -> Tensor:
    batch, channels, height, width = image.shape
    out = image.new_empty(batch, -(-height // cell), -(-width // cell), STATISTICS)
    core().cpu_statistics(
        image=image.data_ptr(),
        out=out.data_ptr(),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        cell=cell,
        value_range=value_range,
        threads=torch.get_num_threads(),
    )
    return out


def predict(statistics: Tensor, fit: FitTensors, parts: int) -> Predictions:
    batch, rows, columns, _ = statistics.shape
    kind_count, candidates, _ = fit.needed.shape
    out = Predictions(*(statistics.new_empty(batch, rows, columns, candidates) for _ in range(2)))
    core().cpu_predict(
        statistics=statistics.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in fit._asdict().items()},
        fidelity=out.fidelity.data_ptr(),
        level=out.level.data_ptr(),
        batch=batch,
        rows=rows,
        columns=columns,
        candidates=candidates,
        kind_count=kind_count,
        levels=LEVELS,
        parts=parts,
        first=FIRST,
        step=STEP,
        unlike=UNLIKE,
        threads=torch.get_num_threads(),
    )
    return out


def _layout(kernel: int, in_channels: int, dtype: torch.dtype) -> Layout:
    """The layout for a convolution. Few input channels are often pixels, which bf16 would round."""
    if in_channels < FEW_CHANNELS:
        return Layout.DIRECT
    if dtype == torch.bfloat16 and core().cpu_isa() in FAST_BF16:
        return Layout.BF16
    return Layout.DIRECT if kernel == 1 else Layout.WINOGRAD


def _weights(program: PatchProgram, dtype: torch.dtype, step: Weighted) -> tuple[Tensor | Fill, Tensor]:
    """The cpu column of docs/program.md, "Weight layouts"."""
    match step:
        case Conv():
            return _kernels(program, dtype, step.sources, step.weight[None]), _pad_groups(bias_of(step)[None])
        case Exit():
            return step.weight, step.bias
        case ChannelAttention():
            return matrices_and_biases(step)
        case Reconstruct():
            weight = _kernels(program, dtype, (step.src,), step.tail.kernel.flatten(0, 1))
            return weight, _pad_groups(step.tail.bias.flatten(0, 1))


def _kernels(program: PatchProgram, dtype: torch.dtype, sources: tuple[int, ...], weight: Tensor) -> Tensor | Fill:
    """Kernels ``[V, C_out, C_in, k, k]``, one or one per pair of border classes, in their layout, flat float32."""
    weight = weight.float()
    channels = [program.buffers[source].channels for source in sources]
    layout = _layout(weight.shape[-1], weight.shape[2], dtype)
    if layout is Layout.BF16:
        return _bf16(weight, channels)
    if layout is Layout.DIRECT:
        return _direct(weight, channels)
    return _winograd(weight, channels)


def _winograd(weight: Tensor, channels: list[int]) -> Fill:
    """The first, interior kernel as ``[C_out / 16][36][C_in][16]``. If there are others, all follow as `_direct`."""
    groups, in_channels = -(-weight.shape[1] // GROUP), weight.shape[2]
    direct = _direct(weight, channels) if len(weight) > 1 else weight.new_empty(0)
    interior = groups * 36 * in_channels * GROUP

    def write(out: Tensor) -> None:
        taps = _grouped(weight[:1].flatten(3))[0].permute(0, 3, 2, 1).flatten(2)
        out[:interior].view(groups, 36, -1).copy_(transform(taps))
        out[interior:] = direct

    return Fill(interior + len(direct), write)


def _direct(weight: Tensor, channels: list[int]) -> Tensor:
    """``[V][C_out / 16][source][k * k][source's channels][16]``."""
    parts = _grouped(weight.flatten(3)).split(channels, dim=3)
    return torch.cat([part.permute(0, 1, 4, 3, 2).flatten(2) for part in parts], dim=2).flatten()


def _bf16(weight: Tensor, channels: list[int]) -> Tensor:
    """bf16 ``[V][C_out / 16][source][source's slice][k * k][16][16][2]``, two by two as float32."""
    parts = []
    for part in _grouped(weight.flatten(3)).split(channels, dim=3):
        slices = pad(part, (0, 0, 0, -part.shape[3] % SLICE)).unflatten(3, (-1, SLICE // 2, 2))
        parts.append(slices.permute(0, 1, 3, 6, 4, 2, 5).flatten(2))
    return torch.cat(parts, dim=2).bfloat16().flatten().view(torch.float32)


def _grouped(weight: Tensor) -> Tensor:
    """``[V, C_out, C_in, taps]`` to ``[V, C_out / 16, 16, C_in, taps]``, output channels zero-padded."""
    return pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def _pad_groups(bias: Tensor) -> Tensor:
    """Biases ``[V, C_out]``, each padded to whole groups, flat."""
    return pad(bias, (0, -bias.shape[1] % GROUP)).flatten()
