"""Whole images: one launch per row of the table, over maps that all patches of an image share.

Each image of a batch has an arena of its own, laid out as a patch's (conv.py). A map of the whole image for what stands
between the two convolutions of a residual block costs its traffic: with 64 channels in float16, 256 bytes per pixel,
0.1 ns at 3 TB/s, beside 0.6 ns for a convolution at 120 TFLOP/s. Keeping it in the program instead would make the first
convolution of a 16x16 tile 27 % dearer. A convolution never writes a map that it reads around its own pixel, so the
order in which programs run does not matter.

`exit_at` says how far each cell runs. The main convolutions take their pixels from lists that the device makes of it;
the other rows run tile by tile, and a program whose tile nobody needs computes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ape_kernels.backends.triton.conv import (
    BIAS,
    DST,
    IN_CHANNELS,
    KERNEL,
    MODE,
    OPCODE,
    OUT_CHANNELS,
    RECONSTRUCT,
    SOURCE,
    SRC,
    WEIGHT,
    accumulate,
    column,
    feature_map,
    span,
    store_features,
    store_pixels,
)
from ape_kernels.backends.triton.steps import cubic, upsample_pixels

KEEP = -2  # in place of a buffer to carry: what stands in the destination stays there
NOTHING: tl.constexpr = tl.constexpr(KEEP)
# arguments that no kernel is compiled for anew
CELLS = ["radius", "ring", "cell", "cell_rows", "cell_columns", "height", "width"]
VARYING = ["row", "stage", "carry", *CELLS]
LISTING = ["factor", "stages", *CELLS]


@triton.jit
def _tile(number, top, left, rows, pixels, PIXELS: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of a tile of a rectangle, int32 ``[PIXELS]``, and which of them it has.

    Tiles are WIDTH pixels wide; in a rectangle with one row or one column, they are as long as they can be.
    """
    wide = tl.where(rows == 1, PIXELS, tl.where(pixels == 1, 1, WIDTH))
    across = tl.cdiv(pixels, wide)
    p = tl.arange(0, PIXELS)
    y = number // across * (PIXELS // wide) + p // wide
    x = number % across * wide + p % wide
    inside = (y < rows) & (x < pixels)
    return top + tl.minimum(y, rows - 1), left + tl.minimum(x, pixels - 1), inside


@triton.jit
def _deepest(exit_at, y, x, factor, radius, ring, cell, cell_rows, cell_columns, height, width):
    """The last stage among the cells near each pixel of a map: within `radius` of them, or of the `ring` around them.

    exit_at: int64 ``[cell_rows, cell_columns]``. factor: of the map's resolution. radius: pixels of the map. ring,
    cell, height, width: pixels of the image.
    """
    top = tl.maximum(tl.maximum(y - radius, 0) // factor - ring, 0) // cell
    bottom = tl.minimum((y + radius) // factor + ring, height - 1) // cell
    left = tl.maximum(tl.maximum(x - radius, 0) // factor - ring, 0) // cell
    right = tl.minimum((x + radius) // factor + ring, width - 1) // cell
    most = (2 * (tl.cdiv(radius, factor) + ring) + cell - 1) // cell + 1  # cells of a row that a pixel can be near to
    deepest = tl.full(y.shape, -1, tl.int64)
    for i in range(0, most * most):
        at = tl.minimum(top + i // most, bottom) * cell_columns + tl.minimum(left + i % most, right)
        deepest = tl.maximum(deepest, tl.load(exit_at + at))
    return deepest


@triton.jit
def _carry(arena, buffers, carry, dst_number, y, x, n, wanted):
    """Where `wanted`, copy the buffer `carry` to dst. -1: write zeros."""
    dst, stride, channels, _ = feature_map(arena, buffers, dst_number)
    src, src_stride, src_channels, _ = feature_map(arena, buffers, tl.maximum(carry, 0))
    at = src + (y * src_stride + x * src_channels)[:, None] + n[None, :]
    values = tl.load(at, mask=wanted[:, None] & (carry >= 0), other=0.0)
    tl.store(dst + (y * stride + x * channels)[:, None] + n[None, :], values, mask=wanted[:, None])


@triton.jit(do_not_specialize=["height", "width", "margin"])
def margin_kernel(buffers, arena, height, width, margin, arena_size, BLOCK: tl.constexpr):
    """Write the zeros around every map; grid ``[rows of the highest map and margins, maps, B]``."""
    origin, stride, channels, resolution = feature_map(
        arena + tl.program_id(2).to(tl.int64) * arena_size, buffers, tl.program_id(1)
    )
    y = tl.program_id(0) - margin
    rows, side = height * resolution, margin * channels
    inside = (y >= 0) & (y < rows)
    if y < rows + margin:
        line = origin + y * stride - side
        right = tl.where(inside, stride - side, 0)
        for begin in range(0, tl.where(inside, side, stride), BLOCK):
            i = begin + tl.arange(0, BLOCK)
            zeros = tl.zeros((BLOCK,), dtype=arena.dtype.element_ty)
            mask = i < tl.where(inside, side, stride)
            tl.store(line + i, zeros, mask=mask)
            tl.store(line + right + i, zeros, mask=mask & inside)


@triton.jit(do_not_specialize=["height", "width"])
def load_kernel(
    image, buffers, arena, height, width, in_channels, arena_size, PIXELS: tl.constexpr, WIDE: tl.constexpr
):
    """Images float32 ``[B, in_channels, height, width]`` into buffer 0; grid ``[blocks of PIXELS pixels, B]``."""
    at = tl.program_id(1).to(tl.int64)
    to, stride, channels, _ = feature_map(arena + at * arena_size, buffers, 0)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.arange(0, WIDE)
    inside = p < height * width
    planes = image + at * in_channels * (height * width)
    known = inside[:, None] & (c < in_channels)[None, :]
    values = tl.load(planes + p[:, None] + c[None, :] * (height * width), mask=known, other=0.0)
    out = to + ((p // width) * stride + (p % width) * channels)[:, None] + c[None, :]
    tl.store(out, values.to(to.dtype.element_ty), mask=inside[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=LISTING)
def count_kernel(
    exit_at, counts, factor, radius, ring, cell, cell_rows, cell_columns, height, width, stages,
    PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Count the pixels of each tile by the last stage that they run to; grid ``[tiles, B]``.

    counts: int32 ``[B, stages, tiles]``, the last stage first.
    """
    tile, at, tiles = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    y, x, inside = _tile(tile, 0, 0, height * factor, width * factor, PIXELS, WIDTH)
    cells = exit_at + at * (cell_rows * cell_columns)
    deepest = _deepest(cells, y, x, factor, radius, ring, cell, cell_rows, cell_columns, height, width)
    for stage in range(0, stages):
        count = tl.sum((inside & (deepest == stage)).to(tl.int32), 0)
        tl.store(counts + (at * stages + stages - 1 - stage) * tiles + tile, count)


@triton.jit(do_not_specialize=LISTING)
def place_kernel(
    exit_at, counts, ends, pixels, factor, radius, ring, cell, cell_rows, cell_columns, height, width, stages,
    PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """List the pixels that run, those that run to the last stage first; grid ``[tiles, B]``.

    counts, ends: int32 ``[B, stages, tiles]``, of `count_kernel`, and their running sums of each image. pixels: int32
    ``[B, height * factor * width * factor]``, numbers of pixels, row by row. So those that run to a stage or further
    come before the end of that stage's last tile.
    """
    tile, at, tiles = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    y, x, inside = _tile(tile, 0, 0, height * factor, width * factor, PIXELS, WIDTH)
    cells = exit_at + at * (cell_rows * cell_columns)
    deepest = _deepest(cells, y, x, factor, radius, ring, cell, cell_rows, cell_columns, height, width)
    pixels += at * (height * factor * width * factor)
    for stage in range(0, stages):
        there = inside & (deepest == stage)
        number = (at * stages + stages - 1 - stage) * tiles + tile
        begin = tl.load(ends + number) - tl.load(counts + number)
        place = begin + tl.cumsum(there.to(tl.int32), 0) - 1
        tl.store(pixels + place, y * (width * factor) + x, mask=there)


@triton.jit(do_not_specialize=["row", "end", "ends_size", "height", "width"])
def main_kernel(
    pixels, ends, table, buffers, weights, arena, row, end, ends_size, height, width, arena_size,
    PLANNED: tl.constexpr, CHANNELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDTH: tl.constexpr, PIPELINE: tl.constexpr, CACHE: tl.constexpr, SWAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A 3x3 CONV from one source, CHANNELS to CHANNELS; grid ``[tiles * CHANNELS // BN, B]``.

    PLANNED: tiles are taken from a list (`place_kernel`) that ends at ``ends[image * ends_size + end]``. A convolution
    costs what its pixels cost, however the cells that run lie to each other.
    """
    at = tl.program_id(1).to(tl.int64)
    arena += at * arena_size
    source, stride, _, resolution = feature_map(arena, buffers, column(table, row, SRC))
    n = tl.program_id(0) % (CHANNELS // BN) * BN + tl.arange(0, BN)
    number = tl.program_id(0) // (CHANNELS // BN)
    across = width * resolution
    count = height * resolution * across
    if PLANNED:
        count_all = count
        count = tl.load(ends + at * ends_size + end)
    if not PLANNED or number * BM < count:
        if PLANNED:
            p = number * BM + tl.arange(0, BM)
            inside = p < count
            p = tl.load(pixels + at * count_all + tl.minimum(p, count - 1))
            y, x = p // across, p % across
        else:
            y, x, inside = _tile(number, 0, 0, height * resolution, across, BM, WIDTH)
        weight = weights + tl.multiple_of(column(table, row, WEIGHT), 16)
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


@triton.jit(do_not_specialize=VARYING)
def carry_kernel(
    exit_at, table, buffers, arena, row, stage, radius, ring, carry, cell, cell_rows, cell_columns,
    height, width, arena_size, BM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Fill the pixels that `main_kernel` does not compute; grid ``[tiles, B]``."""
    at = tl.program_id(1).to(tl.int64)
    arena += at * arena_size
    number = column(table, row, DST)
    _, _, channels, resolution = feature_map(arena, buffers, number)
    y, x, inside = _tile(tl.program_id(0), 0, 0, height * resolution, width * resolution, BM, WIDTH)
    cells = exit_at + at * (cell_rows * cell_columns)
    deepest = _deepest(cells, y, x, resolution, radius, ring, cell, cell_rows, cell_columns, height, width)
    wanted = inside & (deepest < stage)
    if tl.max(wanted.to(tl.int32), 0) != 0:
        for begin in range(0, channels, 16):
            _carry(arena, buffers, carry, number, y, x, begin + tl.arange(0, 16), wanted)


@triton.jit(do_not_specialize=VARYING)
def any_kernel(
    exit_at, table, buffers, weights, arena, sr, row, stage, radius, ring, carry, cell, cell_rows, cell_columns,
    height, width, arena_size, sr_size,
    PLANNED: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, WIDTH: tl.constexpr, PIPELINE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Any CONV or RECONSTRUCT; grid ``[tiles of all border classes * padded channels // UNIT, B]``.

    PLANNED: `_deepest` says which pixels are computed; for the others `_carry` does, unless `carry` is KEEP.
    sr: float32 ``[B, sr_size]``, written by a RECONSTRUCT.
    """
    at = tl.program_id(1).to(tl.int64)
    arena += at * arena_size
    kernel = column(table, row, KERNEL)
    in_channels = tl.cdiv(column(table, row, IN_CHANNELS), UNIT) * UNIT
    out_channels = tl.cdiv(column(table, row, OUT_CHANNELS), UNIT) * UNIT
    reconstructs = column(table, row, OPCODE) == RECONSTRUCT
    _, _, _, resolution = feature_map(arena, buffers, column(table, row, SRC))
    rows, pixels = height * resolution, width * resolution
    n = tl.program_id(0) % (out_channels // UNIT) * UNIT + tl.arange(0, UNIT)
    number = tl.program_id(0) // (out_channels // UNIT)
    variant, top, left, ny, nx = 0, 0, 0, rows, pixels
    if reconstructs & (column(table, row, MODE) != 0):
        begin, first = 0, 0
        for i in range(0, 16):
            from_y, count_y = span(i // 4, rows)
            from_x, count_x = span(i % 4, pixels)
            wide = tl.where(count_y == 1, BM, tl.where(count_x == 1, 1, WIDTH))
            end = begin + tl.cdiv(count_y, BM // wide) * tl.cdiv(count_x, wide)
            here = (number >= begin) & (number < end)
            variant = tl.where(here, i, variant)
            first = tl.where(here, begin, first)
            top, ny = tl.where(here, from_y, top), tl.where(here, count_y, ny)
            left, nx = tl.where(here, from_x, left), tl.where(here, count_x, nx)
            begin = end
        number -= first
    y, x, inside = _tile(number, top, left, ny, nx, BM, WIDTH)
    wanted = inside
    needed = 1
    if PLANNED:
        cells = exit_at + at * (cell_rows * cell_columns)
        deepest = _deepest(cells, y, x, resolution, radius, ring, cell, cell_rows, cell_columns, height, width)
        wanted = inside & (deepest >= stage)
        needed = tl.max(wanted.to(tl.int32), 0)
    if needed != 0:
        acc = tl.zeros((BM, UNIT), dtype=tl.float32)
        weight = weights + tl.multiple_of(column(table, row, WEIGHT), 16)
        weight += variant * kernel * kernel * out_channels * in_channels
        part_row = row
        while column(table, part_row - 1, OPCODE) == SOURCE:
            part_row -= 1
        while part_row <= row:
            source, stride, channels, _ = feature_map(arena, buffers, column(table, part_row, SRC))
            acc = accumulate(
                acc, source, stride, channels, weight, out_channels, kernel, y, x, n,
                UNIT, PIPELINE, "", False, PRECISION,
            )  # fmt: skip
            weight += kernel * kernel * out_channels * channels
            part_row += 1
        acc += tl.load(weights + column(table, row, BIAS) + variant * out_channels + n).to(tl.float32)[None, :]
        if reconstructs:
            store_pixels(acc, table, row, buffers, weights, arena, sr + at * sr_size, rows, pixels, y, x, n, wanted)
        else:
            store_features(acc, table, row, buffers, weights, arena, y, x, n, wanted)
    if PLANNED:
        if carry != NOTHING:
            _carry(arena, buffers, carry, column(table, row, DST), y, x, n, inside & (wanted == 0))


@triton.jit(do_not_specialize=VARYING)
def upsample_kernel(
    exit_at, table, buffers, arena, row, stage, radius, ring, carry, cell, cell_rows, cell_columns,
    height, width, arena_size, PLANNED: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """An UPSAMPLE row, as `any_kernel`; grid ``[blocks of PIXELS pixels, B]``."""
    at = tl.program_id(1).to(tl.int64)
    arena += at * arena_size
    _, _, channels, resolution = feature_map(arena, buffers, column(table, row, DST))
    pixels = width * resolution
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = p // pixels, p % pixels
    inside = y < height * resolution
    y = tl.minimum(y, height * resolution - 1)
    wanted = inside
    if PLANNED:
        cells = exit_at + at * (cell_rows * cell_columns)
        deepest = _deepest(cells, y, x, resolution, radius, ring, cell, cell_rows, cell_columns, height, width)
        wanted = inside & (deepest >= stage)
    upsample_pixels(table, row, buffers, arena, height, width, y, x, wanted, WIDE)
    if PLANNED:
        if carry != NOTHING:
            # WIDE may be more than the map has channels
            for begin in range(0, channels, 16):
                n = begin + tl.arange(0, 16)
                _carry(arena, buffers, carry, column(table, row, DST), y, x, n, inside & (wanted == 0))


@triton.jit
def _bicubic(plane, height, width, centre_y, centre_x, wanted):
    """Values of a plane ``[height, width]`` between its pixels, indices clamped at the border."""
    first_y, first_x = tl.floor(centre_y) - 1.0, tl.floor(centre_x) - 1.0
    total = tl.zeros(centre_y.shape, dtype=tl.float32)
    for i in range(0, 4):
        y = tl.minimum(tl.maximum((first_y + i).to(tl.int32), 0), height - 1)
        line = tl.zeros(centre_y.shape, dtype=tl.float32)
        for j in range(0, 4):
            x = tl.minimum(tl.maximum((first_x + j).to(tl.int32), 0), width - 1)
            pixel = tl.load(plane + y * width + x, mask=wanted, other=0.0)
            line += cubic(centre_x - (first_x + j)) * pixel
        total += cubic(centre_y - (first_y + i)) * line
    return total


@triton.jit(do_not_specialize=["height", "width", "scale", "channels", "cell", "cell_rows", "cell_columns"])
def interpolate_kernel(
    colours, out, exit_at, height, width, scale, channels, cell, cell_rows, cell_columns, PIXELS: tl.constexpr,
):  # fmt: skip
    """The pixels of cells at -1, bicubic; grid ``[blocks of PIXELS pixels, B]``.

    colours: float32 ``[B, channels, height, width]``; out: the picture, float32, `scale` times that; cell: pixels of
    the colours.
    """
    at = tl.program_id(1).to(tl.int64)
    plane = height * width
    colours += at * channels * plane
    out += at * channels * plane * (scale * scale)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = p // (width * scale), p % (width * scale)
    inside = y < height * scale
    number = y // scale // cell * cell_columns + x // scale // cell
    deepest = tl.load(exit_at + at * (cell_rows * cell_columns) + number, mask=inside, other=0)
    wanted = deepest < 0
    if tl.max(wanted.to(tl.int32), 0) != 0:
        centre_y = (y.to(tl.float32) + 0.5) / scale - 0.5
        centre_x = (x.to(tl.float32) + 0.5) / scale - 0.5
        target = out + y * (width * scale) + x
        for c in range(0, channels):
            value = _bicubic(colours + c * plane, height, width, centre_y, centre_x, wanted)
            tl.store(target + c * plane * (scale * scale), value, mask=wanted)
