"""Launches for whole images on shared feature maps: one launch per row of the table. Nothing waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ape_kernels.backends.protocol import Depths, Exits, Picture
from ape_kernels.backends.triton.config import INTERPRETED
from ape_kernels.backends.triton.image_kernels import (
    KEEP,
    any_kernel,
    carry_kernel,
    count_kernel,
    interpolate_kernel,
    load_kernel,
    main_kernel,
    margin_kernel,
    place_kernel,
    upsample_kernel,
)
from ape_kernels.backends.triton.launch import Call
from ape_kernels.backends.triton.plan import Plan, plan
from ape_kernels.collapse import FIRST, INTERIOR, LAST, ONLY
from ape_kernels.sharing import Share
from ape_kernels.table import Column, Opcode, PackedProgram

INTERPOLATED = 4096 if INTERPRETED else 256  # pixels that a program interpolates
ZEROED = 1024  # elements that a program sets to zero at once
LISTED = 256  # pixels of a tile where lists are made
SQUARE = {64: 8, 128: 16, 256: 16}  # pixels of a tile: how many of them are side by side


class _Step(NamedTuple):
    """A row as it runs on images.

    stage: the one that a cell must run to. -1: the head, which runs everywhere. radius, ring: how far around such
    cells the row runs.
    carry: the buffer that the destination takes its values from elsewhere.
    """

    row: int
    stage: int
    radius: int
    ring: int
    carry: int


def run_image(packed: PackedProgram, sharing: Tensor, image: Tensor, depths: Depths, picture: Picture) -> None:
    if not image.numel():
        return
    with torch.cuda.device_of(image):
        run = _Run(packed, image, depths, picture)
        run.begin()
        for step in _steps(run.network, sharing, depths.ring):
            run.step(step)
        run.interpolate()


def image_bytes(packed: PackedProgram) -> int:
    network = plan(packed.table, packed.weights.device)
    maps = network.rows[: network.first_row]
    pixels = sum(network.padded(row[Column.IN_CHANNELS]) * row[Column.RESOLUTION] ** 2 for row in maps)
    return pixels * (2 if packed.weights.dtype == torch.float16 else 4)


def _steps(network: Plan, sharing: Tensor, ring: int) -> Iterator[_Step]:
    """The rows that compute something, in order."""
    shares, stage = sharing.tolist(), -1
    for number in range(network.first_row, len(network.rows)):
        row = network.rows[number]
        radius, carry = shares[number][Share.REACH], shares[number][Share.CARRY]
        match row[Column.OPCODE]:
            case Opcode.STAGE:
                stage += 1
            case Opcode.CONV | Opcode.UPSAMPLE if number < network.tail_row:
                carry = KEEP if carry == row[Column.DST] else carry
                yield _Step(number, stage, radius, ring if stage == 0 else 0, carry)
            case Opcode.CONV | Opcode.UPSAMPLE | Opcode.RECONSTRUCT:
                yield _Step(number, 0, radius, 0, KEEP)
            case _:
                pass


class _Run:
    """One call: the maps, and the arguments of every launch."""

    def __init__(self, packed: PackedProgram, image: Tensor, depths: Depths, picture: Picture) -> None:
        self.batch, _, self.height, self.width = image.shape
        self.image, self.depths, self.picture = image, depths, picture
        self.network, self.weights = plan(packed.table, image.device), packed.weights
        call = Call(self.network, packed.weights, self.height, self.width, Exits(math.inf))
        self.config, self.registers = call.config_for_images()
        self.geometry = call.geometry
        self.constants, self.blocks = call.constants(self.config), call.step_constants()
        self.arena = call.scratch(self.batch, torch.empty)
        self.exit_at = self.network.table if depths.exit_at is None else depths.exit_at  # any tensor: it is not read
        self.lists: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self.cells = (1, 1) if depths.exit_at is None else tuple(depths.exit_at.shape[1:])

    def begin(self) -> None:
        """Load the images, and write zeros around the maps. All else is written before it is read."""
        maps = [row[Column.RESOLUTION] for row in self.network.rows[: self.network.first_row]]
        margin = self.network.margin
        margin_kernel[self.height * max(maps) + 2 * margin, len(maps), self.batch](
            self.geometry.buffers, self.arena, self.height, self.width, margin, self.geometry.arena_size, ZEROED
        )
        grid = (triton.cdiv(self.height * self.width, self.blocks["PIXELS"]), self.batch)
        load_kernel[grid](
            self.image, self.geometry.buffers, self.arena, self.height, self.width, self.image.shape[1],
            self.geometry.arena_size, **self.blocks,
        )  # fmt: skip

    def step(self, step: _Step) -> None:
        network, row = self.network, self.network.rows[step.row]
        head = (self.exit_at, network.table, self.geometry.buffers)
        where = (*step, self.depths.cell, *self.cells, self.height, self.width, self.geometry.arena_size)
        planned = self.depths.exit_at is not None and step.stage >= 0
        if row[Column.OPCODE] == Opcode.UPSAMPLE:
            resolution = network.buffer(row[Column.DST])[Column.RESOLUTION]
            blocks = triton.cdiv(self.height * self.width * resolution**2, self.blocks["PIXELS"])
            upsample_kernel[blocks, self.batch](*head, self.arena, *where, PLANNED=planned, **self.blocks)
            return
        constants = {name: self.constants[name] for name in ("PIPELINE", "PRECISION", "num_warps", "maxnreg")}
        if network.is_main(step.row):
            self._main(step, planned, constants)
            if planned and step.carry != KEEP:
                grid = self._tiles(row, LISTED), self.batch
                carry_kernel[grid](*head, self.arena, *where, BM=LISTED, WIDTH=SQUARE[LISTED])
            return
        bm, unit = self.constants["ANY_BM"], network.unit
        groups = network.padded(row[Column.OUT_CHANNELS]) // unit
        any_kernel[self._tiles(row, bm) * groups, self.batch](
            *head, self.weights, self.arena, self.picture.out, *where, self.picture.out[0].numel(),
            PLANNED=planned, UNIT=unit, BM=bm, WIDTH=SQUARE[bm], **constants,
        )  # fmt: skip

    def _main(self, step: _Step, planned: bool, constants: dict[str, Any]) -> None:
        network, row, config = self.network, self.network.rows[step.row], self.config
        resolution = network.buffer(row[Column.DST])[Column.RESOLUTION]
        pixels = ends = network.table  # any tensor: it is not read
        tiles, end, ends_size = self._tiles(row, config.bm), 0, 0
        if planned:
            pixels, ends = self._list(resolution, step.radius, step.ring)
            tiles = triton.cdiv(pixels.shape[1], config.bm)
            end, ends_size = (ends.shape[1] - step.stage) * ends.shape[2] - 1, ends[0].numel()
        main_kernel[tiles * network.channels // config.bn, self.batch](
            pixels, ends, network.table, self.geometry.buffers, self.weights, self.arena, step.row, end, ends_size,
            self.height, self.width, self.geometry.arena_size, PLANNED=planned, CHANNELS=network.channels,
            BM=config.bm, BN=config.bn, BK=config.bk, WIDTH=SQUARE[config.bm], CACHE=config.cache, SWAP=config.swap,
            **{**constants, "maxnreg": self.registers},
        )  # fmt: skip

    def _list(self, factor: int, radius: int, ring: int) -> tuple[Tensor, Tensor]:
        """The pixels and ends of `place_kernel`, for a map of `factor` times the resolution. Made once per call."""
        if (factor, radius, ring) not in self.lists:
            rows, columns, stages = self.height * factor, self.width * factor, len(self.network.stage_rows)
            tiles = _tiles_of(rows, columns, LISTED)
            counts = torch.empty(self.batch, stages, tiles, dtype=torch.int32, device=self.image.device)
            pixels = torch.empty(self.batch, rows * columns, dtype=torch.int32, device=self.image.device)
            cells = (self.depths.cell, *self.cells, self.height, self.width, stages)
            tile = {"PIXELS": LISTED, "WIDTH": SQUARE[LISTED]}
            count_kernel[tiles, self.batch](self.exit_at, counts, factor, radius, ring, *cells, **tile)
            ends = counts.flatten(1).cumsum(1, dtype=torch.int32).view_as(counts)
            place_kernel[tiles, self.batch](self.exit_at, counts, ends, pixels, factor, radius, ring, *cells, **tile)
            self.lists[factor, radius, ring] = pixels, ends
        return self.lists[factor, radius, ring]

    def interpolate(self) -> None:
        """Write the cells for which the network does not run."""
        if self.depths.exit_at is None:
            return
        colours, scale = self.picture.colours, self.picture.scale
        blocks = triton.cdiv(self.picture.out.shape[2] * self.picture.out.shape[3], INTERPOLATED)
        interpolate_kernel[blocks, self.batch](
            colours, self.picture.out, self.exit_at, *colours.shape[2:], scale, colours.shape[1],
            self.depths.cell * (colours.shape[2] // self.height), *self.cells, PIXELS=INTERPOLATED,
        )  # fmt: skip

    def _tiles(self, row: list[int], bm: int) -> int:
        """How many tiles the destination of a row has, all border classes together."""
        resolution = self.network.buffer(row[Column.SRC])[Column.RESOLUTION]
        rows, pixels = self.height * resolution, self.width * resolution
        if row[Column.OPCODE] != Opcode.RECONSTRUCT or not row[Column.MODE]:
            return _tiles_of(rows, pixels, bm)
        return sum(_tiles_of(y, x, bm) for y in _class_sizes(rows) for x in _class_sizes(pixels))


def _tiles_of(rows: int, pixels: int, bm: int) -> int:
    """How many tiles there are, as `_tile` of the kernels counts them."""
    wide = bm if rows == 1 else 1 if pixels == 1 else SQUARE[bm]
    return triton.cdiv(rows, bm // wide) * triton.cdiv(pixels, wide)


def _class_sizes(size: int) -> list[int]:
    """Pixels of each border class of an axis."""
    sizes = {FIRST: 1, LAST: 1, INTERIOR: size - 2} if size > 1 else {ONLY: 1}
    return [count for count in sizes.values() if count > 0]
