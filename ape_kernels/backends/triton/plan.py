"""What the kernels need to know of a packed program, worked out once from its table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ape_kernels.program import PatchProgram
from ape_kernels.table import Column, Opcode

SMALLEST, LARGEST = 16, 64  # units: the least a tensor core takes, the most a tile takes at once

MOST_IN_32_BITS = 1 << 31  # elements


def channel_unit(widest: int) -> int:
    """Feature maps and weights are padded to multiples of this many channels: 16, 32 or 64."""
    unit = SMALLEST
    while unit < min(widest, LARGEST):
        unit *= 2
    return unit


def program_unit(program: PatchProgram) -> int:
    """`channel_unit` of a program."""
    return channel_unit(max(buffer.channels for buffer in program.buffers))


@dataclass(frozen=True)
class Geometry:
    """Where a worker's feature maps stand, for patches or images of one size.

    buffers: int32 ``[n, 4]`` (int64 for more elements than that counts), on the device: element of pixel (0, 0),
    elements from row to row, elements from pixel to pixel (the padded channels), resolution.
    space_size: elements a worker needs.
    """

    buffers: Tensor
    space_size: int


@dataclass
class Plan:
    """A table on the device and what its rows amount to.

    channels: of the network's main 3x3 convolutions, padded. wide: power of two that holds any map's channels.
    stage_rows: the STAGE rows; first_row: where a patch starts; tail_row: the TAIL row.
    workers: how many programs the device holds at once, by the constants a kernel was compiled with.
    """

    table: Tensor
    rows: list[list[int]]
    unit: int
    channels: int
    wide: int
    border: int
    first_row: int
    stage_rows: list[int]
    tail_row: int
    geometries: dict[tuple[int, int], Geometry] = field(default_factory=dict)
    workers: dict[tuple[Any, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Tensor, device: torch.device) -> Plan:
        """Of a packed table ``[rows, 16]`` on the host."""
        rows = table.tolist()
        opcodes = [row[Column.OPCODE] for row in rows]
        maps = [row[Column.IN_CHANNELS] for row in rows if row[Column.OPCODE] == Opcode.BUFFER]
        unit = channel_unit(max(maps))
        padded = lambda channels: -(-channels // unit) * unit  # noqa: E731
        square = Counter(
            padded(row[Column.IN_CHANNELS])
            for row in rows
            if row[Column.OPCODE] == Opcode.CONV
            and row[Column.KERNEL] == 3
            and padded(row[Column.IN_CHANNELS]) == padded(row[Column.OUT_CHANNELS])
        )
        wide = SMALLEST
        while wide < max(map(padded, maps)):
            wide *= 2
        return cls(
            table=table.to(device),
            rows=rows,
            unit=unit,
            channels=square.most_common(1)[0][0] if square else unit,
            wide=wide,
            border=max(row[Column.KERNEL] for row in rows) // 2,
            first_row=len(maps),
            stage_rows=[i for i, opcode in enumerate(opcodes) if opcode == Opcode.STAGE],
            tail_row=opcodes.index(Opcode.TAIL),
        )

    def padded(self, channels: int) -> int:
        """Channels of a feature map as it is stored."""
        return -(-channels // self.unit) * self.unit

    def is_main(self, number: int) -> bool:
        """Whether a CONV or RECONSTRUCT row is one of the main 3x3 convolutions, from one source."""
        row = self.rows[number]
        square = self.padded(row[Column.IN_CHANNELS]) == self.padded(row[Column.OUT_CHANNELS]) == self.channels
        one_source = self.rows[number - 1][Column.OPCODE] != Opcode.SOURCE
        return row[Column.OPCODE] == Opcode.CONV and row[Column.KERNEL] == 3 and square and one_source

    def has(self, opcode: Opcode) -> bool:
        """Whether a row has this opcode."""
        return any(row[Column.OPCODE] == opcode for row in self.rows)

    def buffer(self, number: int) -> list[int]:
        """The BUFFER row of a feature map."""
        return self.rows[number]

    def geometry(self, height: int, width: int) -> Geometry:
        """For patches of ``height x width`` pixels."""
        if (height, width) not in self.geometries:
            entries, position = [], 0
            for row in self.rows[: self.first_row]:
                channels = self.padded(row[Column.IN_CHANNELS])
                resolution = row[Column.RESOLUTION]
                stride = (width * resolution + 2 * self.border) * channels
                entries.append([position + self.border * (stride + channels), stride, channels, resolution])
                position += (height * resolution + 2 * self.border) * stride
            dtype = torch.int32 if position < MOST_IN_32_BITS else torch.int64
            buffers = torch.tensor(entries, dtype=dtype, device=self.table.device)
            self.geometries[height, width] = Geometry(buffers, position)
        return self.geometries[height, width]


_PLANS = WeakTensorKeyDictionary()


def plan(table: Tensor, device: torch.device) -> Plan:
    """The plan of a packed table, kept as long as the table is."""
    plans = _PLANS.setdefault(table, {})
    if device not in plans:
        plans[device] = Plan.of(table, device)
    return plans[device]
