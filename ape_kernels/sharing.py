"""How the steps of a program run on feature maps that all patches of an image share.

Images run block by block over shared maps, each cell of the image to a depth of its own (`ape_kernels.run.images`). A
cell that has left keeps its features, and its neighbours read them. So each step needs two numbers: how far around the
cells that are still active it has to be computed (`reach`), and what stands elsewhere (`carry`).

The steps of a stage fall into units, for example the two convolutions of a residual block. Inside a unit, results reach
beyond the active cells as far as the rest of the unit reads. The unit's own result is a **state**: it is computed
on the active cells alone, and elsewhere the state before it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from ape_kernels.program import INPUT, ChannelAttention, Module, PatchProgram
from ape_kernels.table import NO_BUFFER, Column, Opcode

FAR = (Opcode.ATTENTION, Opcode.MODULE)  # steps that may read the whole patch


class Share(IntEnum):
    """Columns of the tensor that `sharing_of` returns."""

    REACH = 0
    CARRY = 1


def why_not_shared(program: PatchProgram) -> str | None:
    """None if every step reads only a few pixels around, else the reason."""
    for step in program.steps():
        if isinstance(step, ChannelAttention):
            return "channel attention averages over the whole patch"
        if isinstance(step, Module):
            return "a PyTorch module may read the whole patch"
    return None


def sharing_of(table: Tensor) -> Tensor:
    """int32 ``[rows, 2]``, reach and carry of every row of a table (columns as in `Share`; other rows hold 0 and -1).

    reach: pixels of the step's destination by which it is run beyond the active cells.
    carry: buffer whose contents stand for the destination where the step is not run; the destination itself where
    nothing is to be done, -1 for zeros.

    Raises ValueError for a program that cannot run on shared maps (`why_not_shared`).
    """
    if far := {Opcode(row[Column.OPCODE]).name for row in table.tolist() if row[Column.OPCODE] in FAR}:
        raise ValueError(f"table: expected steps that read a few pixels around alone, got {', '.join(sorted(far))}")
    program = _Rows.of(table)
    shares = torch.tensor([[0, NO_BUFFER]] * len(table), dtype=torch.int32, device="cpu")
    for step in program.steps():
        shares[step.row, Share.REACH], shares[step.row, Share.CARRY] = step.reach, step.carry
    return shares


def receptive_field(table: Tensor, beyond: Mapping[int, int] | None = None) -> int:
    """Low-resolution pixels around a pixel that its part of the picture depends on, at most.

    beyond: for convolutions of some kernel sizes, so many pixels more, for what the last bits depend on.
    """
    program, beyond = _Rows.of(table), beyond or {}
    around = {INPUT: 0.0}  # of a pixel of each buffer; NO_BUFFER: the picture
    for step in program.steps():
        radius = step.radius + (beyond.get(2 * step.radius + 1, 0) if step.factor == 1 or step.dst == NO_BUFFER else 0)
        read = max(around[source] for source in step.sources) + radius / program.resolution[step.sources[0]]
        around[step.dst] = max(read, around.get(step.add, 0.0) if step.add != NO_BUFFER else 0.0)
    return math.ceil(around[NO_BUFFER])


@dataclass
class _Step:
    """A row that computes something; SOURCE rows are part of their convolution."""

    row: int
    sources: tuple[int, ...]
    dst: int
    add: int
    radius: int  # pixels of the sources that it reads around each of its own
    factor: int = 1  # of the resolutions of destination and sources
    reach: int = 0
    carry: int = NO_BUFFER

    @property
    def reads(self) -> tuple[int, ...]:
        return self.sources if self.add == NO_BUFFER else (*self.sources, self.add)


@dataclass
class _Rows:
    """A table taken apart and worked through."""

    resolution: list[int] = field(default_factory=list)  # of each buffer
    channels: list[int] = field(default_factory=list)
    head: list[_Step] = field(default_factory=list)
    stages: list[_Step] = field(default_factory=list)
    tail: list[_Step] = field(default_factory=list)
    first: int = NO_BUFFER  # buffer that the first stage reads
    last: int = NO_BUFFER  # buffer that the tail takes from the stages
    has_exits: bool = False

    @classmethod
    def of(cls, table: Tensor) -> _Rows:
        rows = cls()
        section, sources = rows.head, []
        for number, row in enumerate(table.tolist()):
            src = row[Column.SRC]
            match row[Column.OPCODE]:
                case Opcode.BUFFER:
                    rows.resolution.append(row[Column.RESOLUTION])
                    rows.channels.append(row[Column.IN_CHANNELS])
                case Opcode.STAGE:
                    rows.first = src if rows.first == NO_BUFFER else rows.first
                    rows.last = row[Column.DST]
                    section = rows.stages
                case Opcode.TAIL:
                    section = rows.tail
                case Opcode.EXIT:
                    rows.has_exits = True
                case Opcode.SOURCE:
                    sources.append(src)
                case _:
                    section.append(rows._step(number, row, (*sources, src)))
                    sources = []
        rows._mark_stages()
        rows._mark_ends()
        return rows

    def steps(self) -> list[_Step]:
        return [*self.head, *self.stages, *self.tail]

    def _step(self, number: int, row: list[int], sources: tuple[int, ...]) -> _Step:
        if row[Column.OPCODE] == Opcode.UPSAMPLE:
            # nearest reads its own pixel; bicubic two to either side
            radius = 2 if row[Column.INTERPOLATION] else 0
            return _Step(number, sources, row[Column.DST], NO_BUFFER, radius, row[Column.UPSCALE])
        radius = row[Column.KERNEL] // 2 if row[Column.OPCODE] != Opcode.ATTENTION else 0
        picture = row[Column.OPCODE] == Opcode.RECONSTRUCT
        dst = NO_BUFFER if picture else row[Column.DST]
        add = NO_BUFFER if row[Column.OPCODE] == Opcode.MODULE else row[Column.ADD]
        return _Step(number, sources, dst, add, radius, row[Column.UPSCALE] if picture else 1)

    def _mark_stages(self) -> None:
        """Find the units of the stages, the states between them, and how far each unit's steps reach."""
        live = self._live_after()
        states, latest, unit = {self.first}, self.first, []
        for step, needed in zip(self.stages, live, strict=True):
            unit.append(step)
            step.carry = step.dst
            states.discard(step.dst) if step.add != step.dst else None
            residual = step.add in states
            if not ((residual and needed <= states | {step.dst}) or needed == {step.dst}):
                continue
            if residual:
                step.carry = step.add
            else:
                alike = self.channels[latest] == self.channels[step.dst]
                alike &= self.resolution[latest] == self.resolution[step.dst]
                step.carry = latest if alike and self.has_exits else NO_BUFFER
            self._mark_reach(unit, {}, stop=states)
            states.add(step.dst)
            latest, unit = step.dst, []
        self._mark_reach(unit, {}, stop=states)

    def _live_after(self) -> list[set[int]]:
        """For each step of the stages, the buffers that are read after it before they are rewritten."""
        live, after = {self.last}, []
        for step in reversed(self.stages):
            after.append(set(live))
            live.discard(step.dst)
            live |= {buffer for buffer in step.reads if buffer != INPUT}
        return after[::-1]

    def _mark_ends(self) -> None:
        """The tail, then the head: its results serve the first unit of the stages, and the tail."""
        need: dict[int, int] = {}
        self._mark_reach(self.tail, need, stop=set())
        # the tail reads the last state beyond the active cells too; there it may still be what the head made
        need[self.first] = max(need.get(self.first, 0), need.pop(self.last, 0))
        made = {step.dst for step in self.head}
        written: set[int] = set()
        for step in self.stages:
            for buffer in step.reads:
                if buffer in made - written:
                    radius = step.radius if buffer in step.sources else 0
                    need[buffer] = max(need.get(buffer, 0), self._at_source(step, buffer, step.reach, radius))
            written.add(step.dst)
        self._mark_reach(self.head, need, stop=set())

    def _mark_reach(self, steps: list[_Step], need: dict[int, int], stop: set[int]) -> None:
        """Set the reach of `steps` from what is needed of their results; what they read is added to `need`.

        stop: buffers that are read as they are. (States: a unit does not ask the one before it for more.)
        """
        for step in reversed(steps):
            step.reach = need.pop(step.dst, 0)
            for buffer in step.reads:
                if buffer not in stop:
                    radius = step.radius if buffer in step.sources else 0
                    need[buffer] = max(need.get(buffer, 0), self._at_source(step, buffer, step.reach, radius))

    def _at_source(self, step: _Step, buffer: int, reach: int, radius: int) -> int:
        """`reach` pixels of the step's destination, and `radius` around, in pixels of `buffer`."""
        if buffer == step.add and buffer not in step.sources:
            return reach * step.factor if step.dst == NO_BUFFER else reach
        return -(-reach // step.factor) + radius
