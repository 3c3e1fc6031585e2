"""How the cuda backend packs a program: see the cuda column of docs/program.md, "Weight layouts"."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from ape_kernels.program import Activation, ChannelAttention, Conv, Exit, PatchProgram, Reconstruct, Step, Weighted
from ape_kernels.table import NO_BUFFER, Column, Opcode, PackedProgram, bias_of, float_from_bits, matrices_and_biases
from ape_kernels.table import pack as pack_program

UNIT = 16  # input and output channels of the units that weights are cut into (csrc/cuda/element.h)


def pack(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
    """The table on the CPU and the weights on `device`. A copy of the table for the kernel ends the weight buffer."""
    program = _folded(program, dtype)
    packed = pack_program(program, partial(_layout, program, dtype), dtype=dtype, device=device)
    place = 0  # where each buffer begins in a thread block's arena, in elements per low-resolution pixel
    for row, buffer in zip(packed.table, program.buffers, strict=False):
        row[Column.ARENA_OFFSET] = place
        place += _padded(buffer.channels) * buffer.resolution**2
    _mark_fused(packed.table)
    image = packed.table.flatten().view(dtype).to(device)
    return packed._replace(weights=torch.cat([packed.weights, image]))


def _mark_fused(table: Tensor) -> None:
    """Mark the first CONV row of each fused pair. The kernel runs both rows in one pass, without the buffer between.

    A fused pair is conv, activation, conv, and then an activation or the addition of the first one's input. Both are
    3x3 and have as many output channels as input channels.
    """
    rows = table.tolist()
    tail = next(number for number, row in enumerate(rows) if row[Column.OPCODE] == Opcode.TAIL)
    previous = None
    for number, (one, two) in enumerate(pairwise(rows)):
        if previous == number - 1 or not _fuses(one, two) or rows[number - 1][Column.OPCODE] == Opcode.SOURCE:
            continue
        after = [rows[number + 2 :], rows[max(tail, number + 2) :]]  # a patch may also leave and go on in the tail
        if not any(_is_read(one[Column.DST], part, rows) for part in after):
            table[number, Column.FUSED] = 1
            previous = number


def _is_read(buffer: int, after: list[list[int]], rows: list[list[int]]) -> bool:
    """Whether the rows `after` read `buffer` before they write it."""
    handed_on = next(row[Column.DST] for row in rows if row[Column.OPCODE] == Opcode.STAGE)  # the same for all stages
    columns: dict[int, tuple[Column, ...]] = {
        Opcode.STAGE: (Column.SRC,),
        Opcode.CONV: (Column.SRC, Column.ADD),
        Opcode.ATTENTION: (Column.SRC, Column.ADD),
        Opcode.RECONSTRUCT: (Column.SRC, Column.ADD),
        Opcode.SOURCE: (Column.SRC,),
        Opcode.UPSAMPLE: (Column.SRC,),
        Opcode.EXIT: (Column.SRC,),
    }
    for row in after:
        read = [row[column] for column in columns.get(row[Column.OPCODE], ())]
        if buffer in read or (row[Column.OPCODE] in (Opcode.STAGE, Opcode.TAIL) and buffer == handed_on):
            return True
        if row[Column.OPCODE] in (Opcode.CONV, Opcode.ATTENTION, Opcode.UPSAMPLE) and row[Column.DST] == buffer:
            return False
    return False


def _fuses(one: list[int], two: list[int]) -> bool:
    between = one[Column.DST]
    alike = all(
        row[Column.OPCODE] == Opcode.CONV
        and row[Column.KERNEL] == 3
        and row[Column.IN_CHANNELS] == row[Column.OUT_CHANNELS]
        and float_from_bits(row[Column.SCALE_BITS]) == 1.0
        for row in (one, two)
    )
    if not alike or two[Column.SRC] != between or two[Column.DST] == between:
        return False
    adds_input = two[Column.ADD] == one[Column.SRC] and two[Column.ACTIVATION] == Activation.NONE
    return one[Column.ADD] == NO_BUFFER and (two[Column.ADD] == NO_BUFFER or adds_input)


def _folded(program: PatchProgram, dtype: torch.dtype) -> PatchProgram:
    """`program` with slopes as `_vector` stores them. Scales of convolutions without activation go into the weights."""

    def fold(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(_fold_conv(step, dtype) if isinstance(step, Conv) else step for step in steps)

    stages = tuple(replace(stage, steps=fold(stage.steps)) for stage in program.stages)
    return replace(program, head=fold(program.head), stages=stages, tail=fold(program.tail))


def _fold_conv(step: Conv, dtype: torch.dtype) -> Conv:
    if step.slope is not None:
        return replace(step, slope=_vector(_pad_last(step.slope), dtype))
    if step.activation is Activation.NONE:
        bias = None if step.bias is None else step.bias.float() * step.scale
        return replace(step, weight=step.weight.float() * step.scale, bias=bias, scale=1.0)
    return step


def _layout(program: PatchProgram, dtype: torch.dtype, step: Weighted) -> tuple[Tensor, Tensor]:
    match step:
        case Conv():
            channels = [program.buffers[source].channels for source in step.sources]
            return _units(step.weight[None], channels, dtype), _vector(_pad_last(bias_of(step)), dtype)
        case Exit():
            return _vector(step.weight, dtype), _vector(step.bias, dtype)
        case ChannelAttention():
            matrices, biases = matrices_and_biases(step)
            return _vector(matrices, dtype), _vector(biases, dtype)
        case Reconstruct():
            kernel, bias = step.tail.kernel.flatten(0, 1), step.tail.bias.flatten(0, 1)
            return _units(kernel, [kernel.shape[2]], dtype), _vector(_pad_last(bias), dtype)


def _vector(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that are not operands of a matrix product: they stay float32, as bits in a buffer of `dtype`."""
    return values.detach().float().flatten().contiguous().view(dtype)


def _units(weight: Tensor, channels: list[int], dtype: torch.dtype) -> Tensor:
    """Kernels ``[V, C_out, C_in, k, k]`` to ``[V][C_out / 16][C_in / 16][k * k][unit]``, flat.

    channels: of each source; together they are C_in, and each source is padded to whole units. A unit is 16 by 16
    channels. In float16 it has the order in which the lanes of a warp hold an mma operand; in float32 it is
    ``[C_in][C_out]``.
    """
    variants, out_channels, _, size, _ = weight.shape
    sources = [pad(part, (0, 0, 0, 0, 0, -part.shape[2] % UNIT)) for part in weight.float().split(channels, dim=2)]
    padded = pad(torch.cat(sources, dim=2), (0, 0, 0, 0, 0, 0, 0, -out_channels % UNIT))
    units = padded.reshape(variants, padded.shape[1] // UNIT, UNIT, -1, UNIT, size * size)
    units = units.permute(0, 1, 3, 5, 2, 4)  # [V][C_out / 16][C_in / 16][k * k][C_out][C_in]
    if dtype == torch.float32:
        return units.transpose(4, 5).flatten()
    lane, register, half = torch.meshgrid(*(torch.arange(n, device="cpu") for n in (32, 4, 2)), indexing="ij")
    in_channel = lane % 4 * 2 + half + register % 2 * 8
    out_channel = lane // 4 + register // 2 * 8
    return units[..., out_channel, in_channel].flatten()


def _padded(channels: int) -> int:
    return channels + -channels % UNIT


def _pad_last(vector: Tensor) -> Tensor:
    return pad(vector, (0, -vector.shape[-1] % UNIT))
