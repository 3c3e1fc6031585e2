"""Kernels for few patches: one launch per row of the table, with the row's tiles spread over many programs.

With fewer patches than workers, most of the chip would be idle while each patch runs on one worker. Here each patch has
an arena of its own, and a row ends with its launch instead of with a barrier. The tiles are those of the persistent
kernel, so the results are the same bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ape_kernels.backends.triton.conv import OPCODE, column
from ape_kernels.backends.triton.steps import load_planes, predict
from ape_kernels.backends.triton.worker import EXIT, run_row


@triton.jit(do_not_specialize=["height", "width"])
def begin_kernel(
    patches, exit_index, capacity, buffers, scratch, height, width, in_channels, arena_size,
    PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Load every patch. exit_index becomes -1 (not left), capacity NaN (not known). Launch grid ``[count]``."""
    patch = tl.program_id(0).to(tl.int64)
    planes = patches + patch * (in_channels * height * width)
    load_planes(planes, scratch + patch * arena_size, buffers, 0, height, width, in_channels, PIXELS, WIDE)
    tl.store(exit_index + patch, -1)
    tl.store(capacity + patch, float("nan"))


@triton.jit(do_not_specialize=["row", "height", "width"])
def row_kernel(
    sr, exit_index, table, buffers, weights, scratch, row, height, width, sr_size, arena_size,
    IN_TAIL: tl.constexpr, HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One row on every patch that has not left; in the tail, on every patch.

    Launch grid ``[programs per patch, count]``.
    """
    patch = tl.program_id(1).to(tl.int64)
    if IN_TAIL or tl.load(exit_index + patch) < 0:
        run_row(
            column(table, row, OPCODE), table, row, buffers, weights, scratch + patch * arena_size,
            sr + patch * sr_size, height, width, tl.program_id(0), tl.num_programs(0), HAS_ATTENTION, HAS_UPSAMPLE,
            PIXELS, WIDE, CHANNELS, UNIT, BM, BN, BK, PIPELINE, CACHE, SWAP, ANY_BM, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["row", "stage", "last", "height", "width"])
def exit_kernel(
    exit_index, capacity, exit_at, table, buffers, weights, scratch, row, stage, last, height, width, arena_size,
    boundary, FORCED: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Decide which patches leave after `stage`. Launch grid ``[count]``.

    row: the last row of the stage. last: 1 if all remaining patches leave.
    """
    patch = tl.program_id(0).to(tl.int64)
    if tl.load(exit_index + patch) < 0:
        leaves = last != 0
        if column(table, row, OPCODE) == EXIT:
            arena = scratch + patch * arena_size
            prediction = predict(table, row, buffers, weights, arena, height, width, PIXELS, WIDE)
            tl.store(capacity + patch, 1.0 - prediction)
            if not FORCED:
                leaves = leaves | (prediction >= boundary)
        if FORCED:
            leaves = leaves | (tl.load(exit_at + patch) <= stage)
        if leaves:
            tl.store(exit_index + patch, stage)
