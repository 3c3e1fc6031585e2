"""The persistent kernels. Each worker is one Triton program; it takes patches from a queue and runs each to its end.

A worker owns one arena: the feature maps of one patch. Between two rows of the table all its threads meet at a barrier,
so that a row reads what the row before it wrote. A patch's result depends on this patch alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ape_kernels.backends.triton.conv import DST, OPCODE, SRC, column, conv
from ape_kernels.backends.triton.steps import attention, load_planes, predict, save_planes, upsample
from ape_kernels.table import Opcode

STAGE: tl.constexpr = tl.constexpr(int(Opcode.STAGE))
TAIL: tl.constexpr = tl.constexpr(int(Opcode.TAIL))
CONV: tl.constexpr = tl.constexpr(int(Opcode.CONV))
EXIT: tl.constexpr = tl.constexpr(int(Opcode.EXIT))
RECONSTRUCT: tl.constexpr = tl.constexpr(int(Opcode.RECONSTRUCT))
UPSAMPLE: tl.constexpr = tl.constexpr(int(Opcode.UPSAMPLE))
ATTENTION: tl.constexpr = tl.constexpr(int(Opcode.ATTENTION))


@triton.jit
def run_row(
    opcode, table, row, buffers, weights, arena, sr, height, width, first, step,
    HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Any row that writes a feature map or the picture.

    Runs the tiles first, first + step, ... of a convolution. Program 0 runs steps of other kinds.
    """
    if (opcode == CONV) | (opcode == RECONSTRUCT):
        conv(
            table, row, buffers, weights, arena, sr, height, width, first, step,
            CHANNELS, UNIT, BM, BN, BK, PIPELINE, CACHE, SWAP, ANY_BM, PRECISION,
        )  # fmt: skip
    if HAS_ATTENTION:
        if (opcode == ATTENTION) & (first == 0):
            attention(table, row, buffers, weights, arena, height, width, PIXELS, WIDE)
    if HAS_UPSAMPLE:
        if (opcode == UPSAMPLE) & (first == 0):
            upsample(table, row, buffers, arena, height, width, PIXELS, WIDE)


@triton.jit(do_not_specialize=["count", "height", "width", "first_row", "tail_row"])
def run_patches_kernel(
    patches, sr, exit_index, capacity, exit_at, table, buffers, weights, scratch, queue,
    count, height, width, in_channels, sr_size, arena_size, first_row, tail_row, boundary,
    FORCED: tl.constexpr, HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The whole forward of every patch.

    patches: float32 ``[count, in_channels, height, width]``. sr: float32 ``[count, sr_size]``.
    exit_index: int64, capacity: float32, exit_at (only read if FORCED): int64, each ``[count]``.
    table: int32 ``[rows, 16]``; its steps begin at first_row, the tail begins at tail_row. buffers: int32 ``[n, 4]``.
    scratch: ``[programs, arena_size]``, zero at first. queue: int32 ``[1]``, the next patch, zero at first.
    """
    arena = scratch + tl.program_id(0).to(tl.int64) * arena_size
    patch = tl.atomic_add(queue, 1, sem="relaxed")
    while patch < count:
        at = patch.to(tl.int64)
        planes = patches + at * (in_channels * height * width)
        load_planes(planes, arena, buffers, 0, height, width, in_channels, PIXELS, WIDE)
        tl.debug_barrier()
        row = first_row
        stage = -1
        known = float("nan")
        live = 1
        while live != 0:
            opcode = column(table, row, OPCODE)
            leaves = False
            if opcode == STAGE:
                if FORCED:
                    leaves = (stage >= 0) & (tl.load(exit_at + at) <= stage)
                stage += tl.where(leaves, 0, 1)
            if opcode == EXIT:
                prediction = predict(table, row, buffers, weights, arena, height, width, PIXELS, WIDE)
                known = 1.0 - prediction
                if not FORCED:
                    leaves = prediction >= boundary
            run_row(
                opcode, table, row, buffers, weights, arena, sr + at * sr_size, height, width, 0, 1,
                HAS_ATTENTION, HAS_UPSAMPLE, PIXELS, WIDE,
                CHANNELS, UNIT, BM, BN, BK, PIPELINE, CACHE, SWAP, ANY_BM, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
            live = tl.where(opcode == RECONSTRUCT, 0, 1)
            row = tl.where(leaves, tail_row, row + 1)
        tl.store(exit_index + at, stage)
        tl.store(capacity + at, known)
        patch = tl.atomic_add(queue, 1, sem="relaxed")


@triton.jit(do_not_specialize=["count", "height", "width", "stage", "stage_row", "last"])
def run_stage_kernel(
    features, active, out, ids, capacity, n_left, exit_at, table, buffers, weights, scratch, queue, placed,
    count, height, width, channels, map_size, arena_size, stage, stage_row, last, boundary,
    FORCED: tl.constexpr, HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One stage of the patches `active`, in one launch: load, steps, exit, and store in the order of `leaving_first`.

    features: float32 ``[P, map_size]``. active: int64 ``[count]``, rows of features. out: float32
    ``[count, map_size]``. ids: int64, capacity: float32, each ``[count]``. n_left: int64 ``[1]``.
    exit_at (only read if FORCED): int64 ``[P]``.
    placed: int32 ``[count]``, zero at first. Once it is known, an entry is 1 + how many of the patches up to this one
    leave. Each patch waits for the entry of the patch before it. A running worker took that patch from the queue
    earlier, so the wait ends.
    last: 1 if the stage is the network's last, after which every patch leaves.
    """
    arena = scratch + tl.program_id(0).to(tl.int64) * arena_size
    source, target = column(table, stage_row, SRC), column(table, stage_row, DST)
    i = tl.atomic_add(queue, 1, sem="relaxed")
    while i < count:
        patch = tl.load(active + i)
        load_planes(features + patch * map_size, arena, buffers, source, height, width, channels, PIXELS, WIDE)
        tl.debug_barrier()
        known = float("nan")
        leaves = False
        row = stage_row + 1
        opcode = column(table, row, OPCODE)
        while (opcode != STAGE) & (opcode != TAIL):
            if opcode == EXIT:
                prediction = predict(table, row, buffers, weights, arena, height, width, PIXELS, WIDE)
                known = 1.0 - prediction
                leaves = prediction >= boundary
            run_row(
                opcode, table, row, buffers, weights, arena, out, height, width, 0, 1,
                HAS_ATTENTION, HAS_UPSAMPLE, PIXELS, WIDE,
                CHANNELS, UNIT, BM, BN, BK, PIPELINE, CACHE, SWAP, ANY_BM, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
            row += 1
            opcode = column(table, row, OPCODE)
        if FORCED:
            leaves = tl.load(exit_at + patch) <= stage
        leaves = leaves | (last != 0)
        left = 1
        if i > 0:
            left = tl.atomic_add(placed + i - 1, 0, sem="acquire")
            while left == 0:
                left = tl.atomic_add(placed + i - 1, 0, sem="acquire")
        before = left - 1
        after = before + tl.where(leaves, 1, 0)
        tl.atomic_xchg(placed + i, after + 1, sem="release")
        place = tl.where(leaves, before, count - 1 - (i - before)).to(tl.int64)
        save_planes(out + place * map_size, arena, buffers, target, height, width, channels, PIXELS, WIDE)
        tl.store(ids + place, patch)
        tl.store(capacity + place, known)
        if i == count - 1:
            tl.store(n_left, after)
        tl.debug_barrier()
        i = tl.atomic_add(queue, 1, sem="relaxed")
