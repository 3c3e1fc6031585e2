"""The packed form of a patch program: int32 instruction table and weight buffer (docs/program.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ape_kernels import modules
from ape_kernels.brief import brief_repr
from ape_kernels.program import (
    ChannelAttention,
    Conv,
    Exit,
    Module,
    PatchProgram,
    Reconstruct,
    Step,
    Upsample,
    Weighted,
)


class Opcode(IntEnum):
    """First column of the instruction table."""

    BUFFER = 0
    STAGE = 1
    TAIL = 2
    CONV = 3
    EXIT = 4
    RECONSTRUCT = 5
    SOURCE = 6
    UPSAMPLE = 7
    ATTENTION = 8
    MODULE = 9


class Column(IntEnum):
    """Columns of the instruction table."""

    OPCODE = 0
    SRC = 1
    DST = 2
    ADD = 3
    IN_CHANNELS = 4
    OUT_CHANNELS = 5
    KERNEL = 6
    ACTIVATION = 7
    SCALE_BITS = 8
    WEIGHT = 9
    BIAS = 10
    UPSCALE = 11
    SLOPE = 12
    HIDDEN = 13
    MODE = 14
    FUSED = 15

    # Other names for columns, in the rows of one opcode.
    RESOLUTION = UPSCALE  # BUFFER
    ARENA_OFFSET = WEIGHT  # BUFFER, cuda
    INTERPOLATION = MODE  # UPSAMPLE


# csrc/program.h has the same numbers and names; tests/kernels/test_table.py compares them.
ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NO_BUFFER = -1
WEIGHT_ALIGNMENT = 16  # elements: a cache line of float32


class PackedProgram(NamedTuple):
    """A program as a backend runs it.

    table: int32 ``[rows, 16]``, columns as in `Column`. weights: 1-D buffer in the backend's layout.
    """

    table: Tensor
    weights: Tensor

    __repr__ = brief_repr


@dataclass(frozen=True)
class Fill:
    """Weights that are written directly into the weight buffer: ``write(out)`` fills `size` elements.

    They carry no gradient.
    """

    size: int
    write: Callable[[Tensor], None]


WeightLayout = Callable[[Weighted], tuple[Tensor | Fill, Tensor]]


def bias_of(step: Conv) -> Tensor:
    """The bias ``[C_out]`` of a convolution; zeros if it has none."""
    return step.weight.new_zeros(len(step.weight)) if step.bias is None else step.bias


def matrices_and_biases(step: ChannelAttention) -> tuple[Tensor, Tensor]:
    """The weights and the biases of both 1x1 convolutions, flat: squeeze first, then expand."""
    matrices = torch.cat([step.squeeze.flatten(), step.expand.flatten()])
    return matrices, torch.cat([step.squeeze_bias, step.expand_bias])


def pack(program: PatchProgram, layout: WeightLayout, *, dtype: torch.dtype, device: torch.device) -> PackedProgram:
    """Write the instruction table (on the CPU) and the weight buffer (`dtype`, on `device`) of a program.

    layout: gives a step's weights and bias as 1-D tensors in the order in which the backend reads them.
    The weight buffer carries gradients back to the network's parameters if gradients are recorded and there is no
    `Fill`.
    """
    table = _Table(layout, dtype, device)
    for i, buffer in enumerate(program.buffers):
        table.row(Opcode.BUFFER, src=i, in_channels=buffer.channels, resolution=buffer.resolution)
    table.add(program.head, program)
    for stage in program.stages:
        table.row(Opcode.STAGE, src=stage.src, dst=stage.dst)
        table.add(stage.steps, program)
    table.row(Opcode.TAIL)
    table.add(program.tail, program)
    return PackedProgram(torch.tensor(table.rows, dtype=torch.int32, device="cpu"), table.weights())


class _Table:
    """Rows and weights of a program that is being packed."""

    def __init__(self, layout: WeightLayout, dtype: torch.dtype, device: torch.device) -> None:
        self.layout, self.dtype, self.device = layout, dtype, device
        self.rows: list[list[int]] = []
        self.parts: list[Tensor | Fill] = []
        self.position = 0

    def row(self, opcode: Opcode, **columns: int) -> None:
        row = [0] * len(Column)
        row[Column.OPCODE] = opcode
        for name, value in columns.items():
            row[Column[name.upper()]] = int(value)
        self.rows.append(row)

    def place(self, values: Tensor | Fill) -> int:
        """Append to the weight buffer. Returns the offset in elements."""
        offset = self.position
        size = values.size if isinstance(values, Fill) else len(values)
        padding = -size % WEIGHT_ALIGNMENT
        self.parts.append(values if isinstance(values, Fill) else values.to(device=self.device, dtype=self.dtype))
        if padding:
            self.parts.append(torch.zeros(padding, device=self.device, dtype=self.dtype))
        self.position += size + padding
        return offset

    def weights(self) -> Tensor:
        """The weight buffer."""
        tensors = [part for part in self.parts if isinstance(part, Tensor)]
        if len(tensors) == len(self.parts):
            return torch.cat(tensors)
        weights, position = torch.empty(self.position, device=self.device, dtype=self.dtype), 0
        for part in self.parts:
            if isinstance(part, Fill):
                part.write(weights[position : position + part.size])
                position += part.size
            else:
                weights[position : position + len(part)] = part
                position += len(part)
        return weights

    def add(self, steps: tuple[Step, ...], program: PatchProgram) -> None:
        for step in steps:
            match step:
                case Conv():
                    self._conv(step)
                case ChannelAttention():
                    self._attention(step)
                case Upsample():
                    factor = program.buffers[step.dst].resolution // program.buffers[step.src].resolution
                    interpolation = step.interpolation
                    self.row(Opcode.UPSAMPLE, src=step.src, dst=step.dst, upscale=factor, interpolation=interpolation)
                case Module():
                    self.row(Opcode.MODULE, src=step.src, dst=step.dst, weight=modules.register(step.module))
                case Exit():
                    self.row(Opcode.EXIT, src=step.src, in_channels=len(step.weight), **self._weights(step))
                case Reconstruct():
                    self._reconstruct(step)

    def _weights(self, step: Weighted) -> dict[str, int]:
        weight, bias = self.layout(step)
        return {"weight": self.place(weight), "bias": self.place(bias)}

    def _conv(self, step: Conv) -> None:
        *others, src = step.sources
        for other in others:
            self.row(Opcode.SOURCE, src=other)
        out_channels, in_channels, kernel, _ = step.weight.shape
        self.row(
            Opcode.CONV,
            src=src,
            dst=step.dst,
            add=_number(step.add),
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=kernel,
            activation=step.activation,
            scale_bits=_float_bits(step.scale),
            slope=0 if step.slope is None else self.place(step.slope),
            **self._weights(step),
        )

    def _attention(self, step: ChannelAttention) -> None:
        self.row(
            Opcode.ATTENTION,
            src=step.src,
            dst=step.dst,
            add=_number(step.add),
            in_channels=len(step.expand),
            hidden=len(step.squeeze),
            scale_bits=_float_bits(step.scale),
            **self._weights(step),
        )

    def _reconstruct(self, step: Reconstruct) -> None:
        classes, _, phases, in_channels, kernel, _ = step.tail.kernel.shape
        self.row(
            Opcode.RECONSTRUCT,
            src=step.src,
            add=_number(step.add),
            in_channels=in_channels,
            out_channels=phases,
            kernel=kernel,
            upscale=step.upscale,
            mode=classes > 1,
            **self._weights(step),
        )


def _number(buffer: int | None) -> int:
    return NO_BUFFER if buffer is None else buffer


def _float_bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]


def float_from_bits(bits: int) -> float:
    """The float32 whose bits an int32 column holds."""
    return struct.unpack("<f", struct.pack("<i", bits))[0]
