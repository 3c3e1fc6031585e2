"""Convolutions as implicit matrix products: the tile code of CONV and RECONSTRUCT rows.

A feature map stands in the arena as ``[rows + 2m][pixels + 2m][channels]``. Its channels are padded to the unit, and
its margin of m pixels is zero. `buffers` is int32 ``[n, 4]``, see `Geometry`. Weights are
``[source][tap][C_out][C_in of the source]``, with padded channels. A tile is BM pixels times BN output channels. Each
tap and each BK input channels give one ``[BM, BK] x [BK, BN]`` product, which is added up in float32. With SWAP the
product is weights times pixels: on sm_90 this gives the wide wgmma shapes at 64 channels.

A tile that reaches past its region computes the region's last pixel again and does not store it. So loads need no mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ape_kernels.collapse import FIRST, INTERIOR, LAST, ONLY
from ape_kernels.program import Activation
from ape_kernels.table import NO_BUFFER, Column, Opcode

COLUMNS: tl.constexpr = tl.constexpr(len(Column))
OPCODE: tl.constexpr = tl.constexpr(int(Column.OPCODE))
SRC: tl.constexpr = tl.constexpr(int(Column.SRC))
DST: tl.constexpr = tl.constexpr(int(Column.DST))
ADD: tl.constexpr = tl.constexpr(int(Column.ADD))
IN_CHANNELS: tl.constexpr = tl.constexpr(int(Column.IN_CHANNELS))
OUT_CHANNELS: tl.constexpr = tl.constexpr(int(Column.OUT_CHANNELS))
KERNEL: tl.constexpr = tl.constexpr(int(Column.KERNEL))
ACTIVATION: tl.constexpr = tl.constexpr(int(Column.ACTIVATION))
SCALE_BITS: tl.constexpr = tl.constexpr(int(Column.SCALE_BITS))
WEIGHT: tl.constexpr = tl.constexpr(int(Column.WEIGHT))
BIAS: tl.constexpr = tl.constexpr(int(Column.BIAS))
UPSCALE: tl.constexpr = tl.constexpr(int(Column.UPSCALE))
SLOPE: tl.constexpr = tl.constexpr(int(Column.SLOPE))
MODE: tl.constexpr = tl.constexpr(int(Column.MODE))

RECONSTRUCT: tl.constexpr = tl.constexpr(int(Opcode.RECONSTRUCT))
SOURCE: tl.constexpr = tl.constexpr(int(Opcode.SOURCE))
NONE: tl.constexpr = tl.constexpr(NO_BUFFER)
LINEAR: tl.constexpr = tl.constexpr(int(Activation.NONE))
PRELU: tl.constexpr = tl.constexpr(int(Activation.PRELU))
CLASS_FIRST: tl.constexpr = tl.constexpr(FIRST)
CLASS_INTERIOR: tl.constexpr = tl.constexpr(INTERIOR)
CLASS_LAST: tl.constexpr = tl.constexpr(LAST)
CLASS_ONLY: tl.constexpr = tl.constexpr(ONLY)


@triton.jit
def column(table, row, number):
    """A column of a table row."""
    return tl.load(table + row * COLUMNS + number)


@triton.jit
def feature_map(arena, buffers, number):
    """Pointer to pixel (0, 0), elements from row to row, elements from pixel to pixel, and the resolution."""
    entry = buffers + number * 4
    origin = tl.multiple_of(tl.load(entry), 16)
    stride = tl.multiple_of(tl.load(entry + 1), 16)
    channels = tl.multiple_of(tl.load(entry + 2), 16)
    return arena + origin, stride, channels, tl.load(entry + 3)


@triton.jit
def span(border_class, size):
    """First pixel and number of pixels of a border class on an axis of `size` pixels."""
    begin = tl.where(border_class == CLASS_INTERIOR, 1, tl.where(border_class == CLASS_LAST, size - 1, 0))
    one = (border_class == CLASS_ONLY) == (size == 1)
    count = tl.where(border_class == CLASS_INTERIOR, tl.maximum(size - 2, 0), tl.where(one, 1, 0))
    return begin, count


@triton.jit
def accumulate(
    acc, source, stride, channels, weights, out_channels, kernel, y, x, n,
    BK: tl.constexpr, PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the products of one source. y, x: the tile's pixels ``[BM]``; n: its output channels ``[BN]``."""
    k = tl.arange(0, BK)
    parts = channels // BK
    pixel = source + (y * stride + x * channels)
    for iteration in tl.range(0, kernel * kernel * parts, num_stages=PIPELINE):
        tap = iteration // parts
        first = iteration % parts * BK
        shift = (tap // kernel - kernel // 2) * stride + (tap % kernel - kernel // 2) * channels + first
        a = tl.load(pixel[:, None] + (shift + k)[None, :], cache_modifier=CACHE).to(weights.dtype.element_ty)
        b = tl.load(weights + (tap * out_channels + n)[:, None] * channels + (first + k)[None, :])
        if SWAP:
            acc = tl.dot(b, tl.trans(a), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _epilogue_arguments(table, row, buffers, weights, arena):
    """The scale; whether a map is added; and that map. If none is added, a valid map stands in its place."""
    scale = column(table, row, SCALE_BITS).to(tl.float32, bitcast=True)
    number = column(table, row, ADD)
    added = number != NONE
    add, stride, channels, _ = feature_map(arena, buffers, tl.where(added, number, 0))
    return scale, added, add, stride, channels


@triton.jit
def store_features(acc, table, row, buffers, weights, arena, y, x, n, inside):
    """dst = scale * activation(acc) + add. A ReLU is a PReLU of slope 0; no activation is a PReLU of slope 1."""
    scale, added, add, add_stride, add_channels = _epilogue_arguments(table, row, buffers, weights, arena)
    dst, stride, channels, _ = feature_map(arena, buffers, column(table, row, DST))
    activation = column(table, row, ACTIVATION)
    slope = weights + column(table, row, SLOPE) + n
    below = tl.load(slope, mask=(activation == PRELU) & (n >= 0), other=0.0).to(tl.float32)
    below += tl.where(activation == LINEAR, 1.0, 0.0)
    acc = tl.where(acc > 0, acc, acc * below[None, :]) * scale
    plus = add + (y * add_stride + x * add_channels)[:, None] + n[None, :]
    acc += tl.load(plus, mask=inside[:, None] & added, other=0.0).to(tl.float32)
    out = dst + (y * stride + x * channels)[:, None] + n[None, :]
    tl.store(out, acc.to(dst.dtype.element_ty), mask=inside[:, None])


@triton.jit
def store_pixels(acc, table, row, buffers, weights, arena, sr, rows, pixels, y, x, n, inside):
    """Store pixel_shuffle(acc) + add to sr, float32 ``[O, s * rows, s * pixels]``."""
    _, added, add, add_stride, add_channels = _epilogue_arguments(table, row, buffers, weights, arena)
    upscale = column(table, row, UPSCALE)
    o = n // (upscale * upscale)
    sr_y = (y * upscale)[:, None] + (n % (upscale * upscale) // upscale)[None, :]
    sr_x = (x * upscale)[:, None] + (n % upscale)[None, :]
    valid = inside[:, None] & (n < column(table, row, OUT_CHANNELS))[None, :]
    plus = add + sr_y * add_stride + sr_x * add_channels + o[None, :]
    acc += tl.load(plus, mask=valid & added, other=0.0).to(tl.float32)
    plane = rows * pixels * upscale * upscale
    tl.store(sr + o[None, :] * plane + sr_y * (pixels * upscale) + sr_x, acc, mask=valid)


@triton.jit
def _main_tiles(
    table, row, buffers, weights, arena, height, width, first, step,
    CHANNELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of a 3x3 CONV from one source, with CHANNELS input and CHANNELS output channels."""
    source, stride, _, resolution = feature_map(arena, buffers, column(table, row, SRC))
    weight = weights + tl.multiple_of(column(table, row, WEIGHT), 16)
    pixels = width * resolution
    count = height * resolution * pixels
    for tile in range(first, tl.cdiv(count, BM) * (CHANNELS // BN), step):
        n = tile % (CHANNELS // BN) * BN + tl.arange(0, BN)
        p = tile // (CHANNELS // BN) * BM + tl.arange(0, BM)
        inside = p < count
        p = tl.minimum(p, count - 1)
        y = p // pixels
        x = p % pixels
        if SWAP:
            acc = tl.zeros((BN, BM), dtype=tl.float32)
        else:
            acc = tl.zeros((BM, BN), dtype=tl.float32)
        acc = accumulate(
            acc, source, stride, CHANNELS, weight, CHANNELS, 3, y, x, n, BK, PIPELINE, CACHE, SWAP, PRECISION
        )
        if SWAP:
            acc = tl.trans(acc)
        acc += tl.load(weights + column(table, row, BIAS) + n).to(tl.float32)[None, :]
        store_features(acc, table, row, buffers, weights, arena, y, x, n, inside)


@triton.jit
def _any_tiles(
    table, row, buffers, weights, arena, sr, height, width, first, step, in_channels, out_channels, kernel,
    BM: tl.constexpr, UNIT: tl.constexpr, PIPELINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of any CONV or RECONSTRUCT: several sources, any kernel size, one kernel per pair of border classes.

    The pixels of a pair of border classes are a rectangle. The tiles of all rectangles are counted on, one after
    another.
    """
    reconstructs = column(table, row, OPCODE) == RECONSTRUCT
    _, _, _, resolution = feature_map(arena, buffers, column(table, row, SRC))
    rows, pixels = height * resolution, width * resolution
    weight = weights + tl.multiple_of(column(table, row, WEIGHT), 16)
    in_classes = reconstructs & (column(table, row, MODE) != 0)
    from_row = row
    while column(table, from_row - 1, OPCODE) == SOURCE:
        from_row -= 1
    base = 0
    for variant in range(0, tl.where(in_classes, 16, 1)):
        top, ny = 0, rows
        left, nx = 0, pixels
        if in_classes:
            top, ny = span(variant // 4, rows)
            left, nx = span(variant % 4, pixels)
        count = ny * nx
        tiles = tl.cdiv(count, BM) * (out_channels // UNIT)
        for tile in range((first - base % step + step) % step, tiles, step):
            n = tile % (out_channels // UNIT) * UNIT + tl.arange(0, UNIT)
            p = tile // (out_channels // UNIT) * BM + tl.arange(0, BM)
            inside = p < count
            p = tl.minimum(p, count - 1)
            y = top + p // nx
            x = left + p % nx
            acc = tl.zeros((BM, UNIT), dtype=tl.float32)
            part_weight = weight + variant * kernel * kernel * out_channels * in_channels
            part_row = from_row
            while part_row <= row:
                source, stride, channels, _ = feature_map(arena, buffers, column(table, part_row, SRC))
                acc = accumulate(
                    acc, source, stride, channels, part_weight, out_channels, kernel, y, x, n,
                    UNIT, PIPELINE, "", False, PRECISION,
                )  # fmt: skip
                part_weight += kernel * kernel * out_channels * channels
                part_row += 1
            acc += tl.load(weights + column(table, row, BIAS) + variant * out_channels + n).to(tl.float32)[None, :]
            if reconstructs:
                store_pixels(acc, table, row, buffers, weights, arena, sr, rows, pixels, y, x, n, inside)
            else:
                store_features(acc, table, row, buffers, weights, arena, y, x, n, inside)
        base += tiles


@triton.jit
def conv(
    table, row, buffers, weights, arena, sr, height, width, first, step,
    CHANNELS: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, ANY_BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles first, first + step, ... of a CONV or RECONSTRUCT row.

    A body consists of 3x3 convolutions from CHANNELS to CHANNELS channels. These have code of their own, in which the
    sizes are constants. sr: the patch's picture ``[O, s * height, s * width]``, which a RECONSTRUCT writes.
    """
    kernel = column(table, row, KERNEL)
    in_channels = tl.cdiv(column(table, row, IN_CHANNELS), UNIT) * UNIT
    out_channels = tl.cdiv(column(table, row, OUT_CHANNELS), UNIT) * UNIT
    one_source = column(table, row - 1, OPCODE) != SOURCE
    main = (kernel == 3) & (in_channels == CHANNELS) & (out_channels == CHANNELS) & one_source
    if main & (column(table, row, OPCODE) != RECONSTRUCT):
        _main_tiles(
            table, row, buffers, weights, arena, height, width, first, step,
            CHANNELS, BM, BN, BK, PIPELINE, CACHE, SWAP, PRECISION,
        )  # fmt: skip
    else:
        _any_tiles(
            table, row, buffers, weights, arena, sr, height, width, first, step, in_channels, out_channels, kernel,
            ANY_BM, UNIT, PIPELINE, PRECISION,
        )  # fmt: skip
