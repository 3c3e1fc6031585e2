"""The persistent kernels: one program a worker, patches from an atomic queue, each carried all the way.

A worker owns one space of scratch memory: the program's feature maps for one patch. Between two rows of the table
all its threads meet at a barrier, so that a row reads what the one before wrote. A patch's result depends on the
patch alone.
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
    opcode, table, row, buffers, weights, space, sr, height, width, first, step,
    HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Any row that writes a feature map or the picture. Tiles first, first + step, ...; other steps by program 0."""
    if (opcode == CONV) | (opcode == RECONSTRUCT):
        conv(
            table, row, buffers, weights, space, sr, height, width, first, step,
            CHANNELS, UNIT, BM, BN, BK, STAGES, CACHE, SWAP, ANY_BM, PRECISION,
        )  # fmt: skip
    if HAS_ATTENTION:
        if (opcode == ATTENTION) & (first == 0):
            attention(table, row, buffers, weights, space, height, width, PIXELS, WIDE)
    if HAS_UPSAMPLE:
        if (opcode == UPSAMPLE) & (first == 0):
            upsample(table, row, buffers, space, height, width, PIXELS, WIDE)


@triton.jit(do_not_specialize=["count", "height", "width", "first_row", "tail_row"])
def run_patches_kernel(
    patches, sr, exit_index, capacity, exit_at, table, buffers, weights, scratch, queue,
    count, height, width, in_channels, sr_size, space_size, first_row, tail_row, boundary,
    FORCED: tl.constexpr, HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Whole forward of every patch.

    patches: float32 ``[count, in_channels, height, width]``. sr: float32 ``[count, sr_size]``.
    exit_index: int64, capacity: float32, exit_at (read if FORCED): int64, each ``[count]``.
    table: int32 ``[rows, 16]``; its steps begin at first_row, the tail at tail_row. buffers: int32 ``[n, 4]``.
    scratch: ``[programs, space_size]``, zero. queue: int32 ``[1]``, zero: the next patch.
    """
    space = scratch + tl.program_id(0).to(tl.int64) * space_size
    patch = tl.atomic_add(queue, 1, sem="relaxed")
    while patch < count:
        at = patch.to(tl.int64)
        planes = patches + at * (in_channels * height * width)
        load_planes(planes, space, buffers, 0, height, width, in_channels, PIXELS, WIDE)
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
                prediction = predict(table, row, buffers, weights, space, height, width, PIXELS, WIDE)
                known = 1.0 - prediction
                if not FORCED:
                    leaves = prediction >= boundary
            run_row(
                opcode, table, row, buffers, weights, space, sr + at * sr_size, height, width, 0, 1,
                HAS_ATTENTION, HAS_UPSAMPLE, PIXELS, WIDE,
                CHANNELS, UNIT, BM, BN, BK, STAGES, CACHE, SWAP, ANY_BM, PRECISION,
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
    count, height, width, channels, map_size, space_size, stage, stage_row, last, boundary,
    FORCED: tl.constexpr, HAS_ATTENTION: tl.constexpr, HAS_UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One stage of the patches `active`: gather, steps, exit, and scatter to the compacted places, in one launch.

    features: float32 ``[P, map_size]``, active: int64 ``[count]``, rows of it. out: float32 ``[count, map_size]``.
    ids: int64, capacity: float32, each ``[count]``; n_left: int64 ``[1]``. exit_at (read if FORCED): int64 ``[P]``.
    placed: int32 ``[count]``, zero: 1 + how many of the patches up to this one leave, once known. A patch waits for
    that of the one before it. That one was taken from the queue earlier, by a worker that runs, so the wait ends.
    last: 1 if the stage is the network's last, after which every patch leaves.
    """
    space = scratch + tl.program_id(0).to(tl.int64) * space_size
    source, target = column(table, stage_row, SRC), column(table, stage_row, DST)
    i = tl.atomic_add(queue, 1, sem="relaxed")
    while i < count:
        patch = tl.load(active + i)
        load_planes(features + patch * map_size, space, buffers, source, height, width, channels, PIXELS, WIDE)
        tl.debug_barrier()
        known = float("nan")
        leaves = False
        row = stage_row + 1
        opcode = column(table, row, OPCODE)
        while (opcode != STAGE) & (opcode != TAIL):
            if opcode == EXIT:
                prediction = predict(table, row, buffers, weights, space, height, width, PIXELS, WIDE)
                known = 1.0 - prediction
                leaves = prediction >= boundary
            run_row(
                opcode, table, row, buffers, weights, space, out, height, width, 0, 1,
                HAS_ATTENTION, HAS_UPSAMPLE, PIXELS, WIDE,
                CHANNELS, UNIT, BM, BN, BK, STAGES, CACHE, SWAP, ANY_BM, PRECISION,
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
        save_planes(out + place * map_size, space, buffers, target, height, width, channels, PIXELS, WIDE)
        tl.store(ids + place, patch)
        tl.store(capacity + place, known)
        if i == count - 1:
            tl.store(n_left, after)
        tl.debug_barrier()
        i = tl.atomic_add(queue, 1, sem="relaxed")
