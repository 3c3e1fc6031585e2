"""What the kernels need to know of a packed program. It is worked out from the table once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ape_kernels.program import PatchProgram
from ape_kernels.table import Column, Opcode

SMALLEST, LARGEST = 16, 64  # units: a tensor core takes at least 16 channels, a tile takes at most 64 at once

MOST_IN_32_BITS = 1 << 31  # elements


def channel_unit(widest: int) -> int:
    """16, 32 or 64. The channels of feature maps and weights are padded to multiples of it.

    widest: the most channels of any buffer.
    """
    unit = SMALLEST
    while unit < min(widest, LARGEST):
        unit *= 2
    return unit


def program_unit(program: PatchProgram) -> int:
    """`channel_unit` of a program."""
    return channel_unit(max(buffer.channels for buffer in program.buffers))


@dataclass(frozen=True)
class Geometry:
    """Where the feature maps stand in an arena, for patches or images of one size.

    buffers: int32 ``[n, 4]`` on the device, int64 where there are more elements than int32 counts. The columns are the
    element of pixel (0, 0), the elements from row to row, the elements from pixel to pixel (the padded channels), and
    the resolution. arena_size: elements of an arena.
    """

    buffers: Tensor
    arena_size: int


@dataclass
class Plan:
    """A table on the device, and what follows from its rows.

    channels: of the network's main 3x3 convolutions, padded. wide: a power of two that is at least the channels of
    every map. margin: pixels of zeros around a map. stage_rows: the STAGE rows. first_row: the row with which a patch
    starts. tail_row: the TAIL row. workers: how many programs the device holds at once, by the constants with which the
    kernel was compiled.
    """

    table: Tensor
    rows: list[list[int]]
    unit: int
    channels: int
    wide: int
    margin: int
    first_row: int
    stage_rows: list[int]
    tail_row: int
    geometries: dict[tuple[int, int], Geometry] = field(default_factory=dict)
    workers: dict[tuple[Any, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Tensor, device: torch.device) -> Plan:
        """The plan of a packed table, int32 ``[rows, 16]`` on the CPU."""
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
            margin=max(row[Column.KERNEL] for row in rows) // 2,
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
        """The geometry for patches of ``height x width`` pixels."""
        if (height, width) not in self.geometries:
            entries, position = [], 0
            for row in self.rows[: self.first_row]:
                channels = self.padded(row[Column.IN_CHANNELS])
                resolution = row[Column.RESOLUTION]
                stride = (width * resolution + 2 * self.margin) * channels
                entries.append([position + self.margin * (stride + channels), stride, channels, resolution])
                position += (height * resolution + 2 * self.margin) * stride
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
