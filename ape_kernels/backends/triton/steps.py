"""The steps that are not convolutions: exits, channel attention, upsampling, and loading and saving of patches.

They are limited by memory. One program runs each of them with plain tiles of PIXELS pixels times WIDE channels. WIDE is
a power of two that is at least the channels of every map. Sums are in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ape_kernels.backends.triton.conv import (
    ADD,
    BIAS,
    DST,
    IN_CHANNELS,
    MODE,
    NONE,
    SCALE_BITS,
    SRC,
    UPSCALE,
    WEIGHT,
    column,
    feature_map,
)
from ape_kernels.program import Interpolation
from ape_kernels.table import Column

HIDDEN: tl.constexpr = tl.constexpr(int(Column.HIDDEN))
NEAREST: tl.constexpr = tl.constexpr(int(Interpolation.NEAREST))


@triton.jit
def _tanh(x):
    """The hyperbolic tangent. Triton has none that also runs in the interpreter."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def load_planes(
    planes, arena, buffers, number, height, width, plane_channels, PIXELS: tl.constexpr, WIDE: tl.constexpr
):
    """Fill a feature map from float32 ``[plane_channels, rows, pixels]``."""
    to, stride, channels, resolution = feature_map(arena, buffers, number)
    rows, pixels = height * resolution, width * resolution
    c = tl.arange(0, WIDE)
    for begin in range(0, rows * pixels, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        inside = (p < rows * pixels)[:, None] & (c < plane_channels)[None, :]
        values = tl.load(planes + p[:, None] + c[None, :] * (rows * pixels), mask=inside, other=0.0)
        out = to + ((p // pixels) * stride + (p % pixels) * channels)[:, None] + c[None, :]
        tl.store(out, values.to(to.dtype.element_ty), mask=inside)


@triton.jit
def save_planes(
    planes, arena, buffers, number, height, width, plane_channels, PIXELS: tl.constexpr, WIDE: tl.constexpr
):
    """Write a feature map to float32 ``[plane_channels, rows, pixels]``."""
    src, stride, channels, resolution = feature_map(arena, buffers, number)
    rows, pixels = height * resolution, width * resolution
    c = tl.arange(0, WIDE)
    for begin in range(0, rows * pixels, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        inside = (p < rows * pixels)[:, None] & (c < plane_channels)[None, :]
        at = src + ((p // pixels) * stride + (p % pixels) * channels)[:, None] + c[None, :]
        values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        tl.store(planes + p[:, None] + c[None, :] * (rows * pixels), values, mask=inside)


@triton.jit
def _mean(src, stride, channels, rows, pixels, PIXELS: tl.constexpr, WIDE: tl.constexpr):
    """Mean over the pixels of a map, float32 ``[WIDE]``."""
    c = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for begin in range(0, rows * pixels, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        inside = (p < rows * pixels)[:, None] & (c < channels)[None, :]
        at = src + ((p // pixels) * stride + (p % pixels) * channels)[:, None] + c[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float32), 0)
    return total / (rows * pixels)


@triton.jit
def predict(table, row, buffers, weights, arena, height, width, PIXELS: tl.constexpr, WIDE: tl.constexpr):
    """tanh(weight . mean + bias) of an EXIT row."""
    src, stride, channels, resolution = feature_map(arena, buffers, column(table, row, SRC))
    mean = _mean(src, stride, channels, height * resolution, width * resolution, PIXELS, WIDE)
    c = tl.arange(0, WIDE)
    used = c < column(table, row, IN_CHANNELS)
    weight = tl.load(weights + column(table, row, WEIGHT) + c, mask=used, other=0.0).to(tl.float32)
    return _tanh(tl.sum(mean * weight, 0) + tl.load(weights + column(table, row, BIAS)).to(tl.float32))


@triton.jit
def attention(table, row, buffers, weights, arena, height, width, PIXELS: tl.constexpr, WIDE: tl.constexpr):
    """An ATTENTION row. The gates are in registers before the map changes, which may also be the destination."""
    src, stride, channels, resolution = feature_map(arena, buffers, column(table, row, SRC))
    dst, dst_stride, dst_channels, _ = feature_map(arena, buffers, column(table, row, DST))
    rows, pixels = height * resolution, width * resolution
    mean = _mean(src, stride, channels, rows, pixels, PIXELS, WIDE)
    count, hidden = column(table, row, IN_CHANNELS), column(table, row, HIDDEN)
    c = tl.arange(0, WIDE)
    used = c < count
    squeeze = weights + column(table, row, WEIGHT)  # [hidden][count]
    expand = squeeze + hidden * count  # [count][hidden]
    bias = weights + column(table, row, BIAS)  # [hidden], then [count]
    score = tl.load(bias + hidden + c, mask=used, other=0.0).to(tl.float32)
    for h in range(0, hidden):
        line = tl.load(squeeze + h * count + c, mask=used, other=0.0).to(tl.float32)
        squeezed = tl.maximum(tl.sum(line * mean, 0) + tl.load(bias + h).to(tl.float32), 0.0)
        score += squeezed * tl.load(expand + c * hidden + h, mask=used, other=0.0).to(tl.float32)
    gate = column(table, row, SCALE_BITS).to(tl.float32, bitcast=True) / (1.0 + tl.exp(-score))
    add_number = column(table, row, ADD)
    added = add_number != NONE
    add, add_stride, add_channels, _ = feature_map(arena, buffers, tl.where(added, add_number, 0))
    tl.debug_barrier()
    for begin in range(0, rows * pixels, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        y, x = p // pixels, p % pixels
        inside = (p < rows * pixels)[:, None] & used[None, :]
        values = tl.load(src + (y * stride + x * channels)[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        plus = add + (y * add_stride + x * add_channels)[:, None] + c[None, :]
        values = values * gate[None, :] + tl.load(plus, mask=inside & added, other=0.0).to(tl.float32)
        out = dst + (y * dst_stride + x * dst_channels)[:, None] + c[None, :]
        tl.store(out, values.to(dst.dtype.element_ty), mask=inside)


@triton.jit
def cubic(distance):
    """Weight of a tap of cubic interpolation at this distance, with PyTorch's a = -0.75."""
    d = tl.abs(distance)
    near = (1.25 * d - 2.25) * d * d + 1.0
    far = ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0
    return tl.where(d <= 1.0, near, far)


@triton.jit
def upsample(table, row, buffers, arena, height, width, PIXELS: tl.constexpr, WIDE: tl.constexpr):
    """An UPSAMPLE row: nearest, or bicubic with clamped indices."""
    _, _, _, resolution = feature_map(arena, buffers, column(table, row, DST))
    rows, pixels = height * resolution, width * resolution
    for begin in range(0, rows * pixels, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        upsample_pixels(table, row, buffers, arena, height, width, p // pixels, p % pixels, p < rows * pixels, WIDE)


@triton.jit
def upsample_pixels(table, row, buffers, arena, height, width, out_y, out_x, wanted, WIDE: tl.constexpr):
    """Pixels of an UPSAMPLE row's destination, where `wanted`; out_y, out_x int32 ``[P]``, wanted bool ``[P]``."""
    src, stride, channels, resolution = feature_map(arena, buffers, column(table, row, SRC))
    dst, dst_stride, dst_channels, _ = feature_map(arena, buffers, column(table, row, DST))
    rows, pixels = height * resolution, width * resolution
    factor = column(table, row, UPSCALE)
    c = tl.arange(0, WIDE)
    inside = wanted[:, None] & (c < channels)[None, :]
    if column(table, row, MODE) == NEAREST:
        at = src + (out_y // factor * stride + out_x // factor * channels)[:, None] + c[None, :]
        values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    else:
        centre_y = (out_y.to(tl.float32) + 0.5) / factor - 0.5
        centre_x = (out_x.to(tl.float32) + 0.5) / factor - 0.5
        first_y, first_x = tl.floor(centre_y) - 1.0, tl.floor(centre_x) - 1.0
        values = tl.zeros((out_y.shape[0], WIDE), dtype=tl.float32)
        for tap in range(0, 16):
            tap_y, tap_x = first_y + tap // 4, first_x + tap % 4
            weight = cubic(centre_y - tap_y) * cubic(centre_x - tap_x)
            y = tl.minimum(tl.maximum(tap_y.to(tl.int32), 0), rows - 1)
            x = tl.minimum(tl.maximum(tap_x.to(tl.int32), 0), pixels - 1)
            at = src + (y * stride + x * channels)[:, None] + c[None, :]
            values += weight[:, None] * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    out = dst + (out_y * dst_stride + out_x * dst_channels)[:, None] + c[None, :]
    tl.store(out, values.to(dst.dtype.element_ty), mask=inside)
