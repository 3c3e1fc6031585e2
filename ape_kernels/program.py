"""Patch programs: the short list of steps that every backend runs over a few patch-sized buffers.

Adapters turn a network into a `PatchProgram`; backends `pack` it into an int32 instruction table and
one weight buffer, and interpret the table. The table is described in docs/program.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ape_kernels.collapse import CollapsedTail

INPUT = 0  # buffer that holds the low-resolution patch


class Opcode(IntEnum):
    """First column of the instruction table."""

    BUFFER = 0
    STAGE = 1
    TAIL = 2
    CONV = 3
    EXIT = 4
    RECONSTRUCT = 5


class Activation(IntEnum):
    """Activation of a `Conv`, as stored in the instruction table."""

    NONE = 0
    RELU = 1


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


NO_BUFFER = -1
WEIGHT_ALIGNMENT = 16  # elements: a cache line of float32


@dataclass(frozen=True)
class Conv:
    """``dst = scale * act(conv(src) + bias) + add``, zero-padded, stride 1.

    src, dst, add: buffer numbers; `add` may be None or equal `dst`, `src` must not equal `dst`.
    weight: ``[C_out, C_in, k, k]``, k odd. bias: ``[C_out]`` or None.
    """

    src: int
    dst: int
    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = Activation.NONE
    scale: float = 1.0
    add: int | None = None

    def __post_init__(self) -> None:
        if self.src == self.dst:
            raise ValueError(f"src: a convolution cannot write the buffer it reads, got {self.src} for both")

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a low-resolution pixel, multiplications and additions of the direct convolution."""
        return 2 * self.weight.numel()


@dataclass(frozen=True)
class Exit:
    """Predict how little the stage brought: ``tanh(weight . mean(src) + bias)``; leave where it reaches the boundary.

    weight: ``[C]``. bias: ``[1]``.
    """

    src: int
    weight: Tensor
    bias: Tensor

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a low-resolution pixel: the additions of the mean."""
        return self.weight.numel()


@dataclass(frozen=True)
class Reconstruct:
    """Collapsed tail: one convolution by border class, then a pixel shuffle by `upscale` to SR pixels."""

    src: int
    tail: CollapsedTail
    upscale: int

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a low-resolution pixel of the collapsed tail."""
        return 2 * self.tail.kernel[0, 0].numel()


Step = Conv | Exit | Reconstruct


@dataclass(frozen=True)
class Stage:
    """The steps between two exits. Features enter in buffer `src` and leave in buffer `dst`.

    The last step may be an `Exit`; without one no patch leaves here unless it is the last stage.
    """

    src: int
    dst: int
    steps: tuple[Step, ...]

    @property
    def has_exit(self) -> bool:
        """Whether the stage ends in an `Exit`."""
        return bool(self.steps) and isinstance(self.steps[-1], Exit)


@dataclass(frozen=True)
class PatchProgram:
    """A network as steps over patch-sized buffers.

    buffers: channels of each buffer; buffer 0 is the low-resolution patch.
    head, stages, tail: run in this order; the tail ends in a `Reconstruct`.
    exit_threshold: the wrapped model's own prediction from which a patch leaves, or None.
    """

    buffers: tuple[int, ...]
    head: tuple[Step, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Step, ...]
    exit_threshold: float | None = None

    @property
    def reconstruct(self) -> Reconstruct:
        """The step that ends the tail."""
        last = self.tail[-1]
        assert isinstance(last, Reconstruct)
        return last

    @property
    def upscale(self) -> int:
        """Upscaling factor."""
        return self.reconstruct.upscale

    @property
    def out_channels(self) -> int:
        """Channels of the picture."""
        return self.reconstruct.tail.kernel.shape[2] // self.upscale**2

    @property
    def in_channels(self) -> int:
        """Channels of the low-resolution patch."""
        return self.buffers[INPUT]

    def steps(self) -> Iterator[Step]:
        """All steps in program order."""
        yield from self.head
        for stage in self.stages:
            yield from stage.steps
        yield from self.tail

    def flops_to_stage(self, stage: int) -> int:
        """FLOPs a low-resolution pixel costs a patch that leaves after `stage`: head, stages 0..stage, tail."""
        done = [step for part in self.stages[: stage + 1] for step in part.steps]
        return sum(step.flops_per_pixel for step in (*self.head, *done, *self.tail))

    def body_flops_to_stage(self, stage: int) -> int:
        """The stages' share of `flops_to_stage`: what an exit can save."""
        return sum(step.flops_per_pixel for part in self.stages[: stage + 1] for step in part.steps)


@dataclass(frozen=True)
class PackedProgram:
    """A program as a backend runs it.

    table: int32 ``[rows, 12]``, columns as in `Column`. weights: 1-D buffer in the backend's layout.
    """

    table: Tensor
    weights: Tensor
    upscale: int
    out_channels: int


WeightLayout = Callable[[Step], tuple[Tensor, Tensor]]


def pack(program: PatchProgram, layout: WeightLayout, *, dtype: torch.dtype, device: torch.device) -> PackedProgram:
    """Assemble instruction table (on the host) and weight buffer (on `device`).

    layout: gives a step's weights and bias as 1-D tensors in the order the backend reads them.
    """
    rows: list[list[int]] = [_row(Opcode.BUFFER, src=i, in_channels=c) for i, c in enumerate(program.buffers)]
    chunks: list[Tensor] = []
    position = 0

    def place(values: Tensor) -> int:
        nonlocal position
        offset = position
        padded = -len(values) % WEIGHT_ALIGNMENT
        chunks.append(torch.nn.functional.pad(values.detach().to(device=device, dtype=dtype), (0, padded)))
        position += len(values) + padded
        return offset

    def add(steps: tuple[Step, ...]) -> None:
        for step in steps:
            weight, bias = layout(step)
            rows.append(_instruction(step, place(weight), place(bias)))

    add(program.head)
    for stage in program.stages:
        rows.append(_row(Opcode.STAGE, src=stage.src, dst=stage.dst))
        add(stage.steps)
    rows.append(_row(Opcode.TAIL))
    add(program.tail)
    return PackedProgram(
        torch.tensor(rows, dtype=torch.int32), torch.cat(chunks), program.upscale, program.out_channels
    )


def _instruction(step: Step, weight: int, bias: int) -> list[int]:
    match step:
        case Conv():
            out_channels, in_channels, kernel, _ = step.weight.shape
            return _row(
                Opcode.CONV,
                src=step.src,
                dst=step.dst,
                add=NO_BUFFER if step.add is None else step.add,
                in_channels=in_channels,
                out_channels=out_channels,
                kernel=kernel,
                activation=step.activation,
                scale_bits=_float_bits(step.scale),
                weight=weight,
                bias=bias,
            )
        case Exit():
            return _row(Opcode.EXIT, src=step.src, in_channels=len(step.weight), weight=weight, bias=bias)
        case Reconstruct():
            _, _, phases, in_channels, kernel, _ = step.tail.kernel.shape
            return _row(
                Opcode.RECONSTRUCT,
                src=step.src,
                in_channels=in_channels,
                out_channels=phases,
                kernel=kernel,
                weight=weight,
                bias=bias,
                upscale=step.upscale,
            )


def _row(opcode: Opcode, **columns: int) -> list[int]:
    row = [0] * len(Column)
    row[Column.OPCODE] = opcode
    for name, value in columns.items():
        row[Column[name.upper()]] = int(value)
    return row


def _float_bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]


def float_from_bits(bits: int) -> float:
    """The float32 stored bit by bit in an int32 column."""
    return struct.unpack("<f", struct.pack("<i", bits))[0]
