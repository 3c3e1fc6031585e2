"""Parts that several network families have: exits, upsamplers, tails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ape_kernels.adapters.recognise import (
    Network,
    NotRecognised,
    expect_conv,
    expect_number,
    expect_only_children,
    expect_sequence,
    expect_whole,
    refuse,
)
from ape_kernels.collapse import CollapsedTail, collapse_tail, linear_steps
from ape_kernels.program import Activation, Buffer, Conv, Exit, Interpolation, Reconstruct, Stage, Step, Upsample


def conv_step(conv: nn.Conv2d, src: int | tuple[int, ...], dst: int, **options: Any) -> Conv:
    """The step of a recognised convolution. `options` are fields of `Conv`."""
    return Conv(src, dst, conv.weight, conv.bias, **options)


def leaky_conv_step(conv: nn.Conv2d, src: int | tuple[int, ...], dst: int, slope: float) -> Conv:
    """The step of a convolution and an `nn.LeakyReLU` after it."""
    slopes = conv.weight.new_full((conv.out_channels,), slope)
    return conv_step(conv, src, dst, activation=Activation.PRELU, slope=slopes)


def one_kernel(weight: Tensor, bias: Tensor | None) -> CollapsedTail:
    """A last convolution ``[O * s * s, C, k, k]`` as a tail: one kernel for all border classes."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return CollapsedTail(weight[None, None], bias[None, None])


@dataclass(frozen=True)
class Activated:
    """Nearest upsampling by `factor`, a recognised convolution, and the slope of the LeakyReLU after it."""

    conv: nn.Conv2d
    slope: float
    factor: int = 1


def nearest_tail(
    doublings: Sequence[Activated],
    high: Activated,
    kernel: CollapsedTail,
    *,
    src: int,
    spare: int,
    free: int,
    channels: int,
) -> tuple[tuple[Step, ...], list[Buffer]]:
    """Steps from features in `src` to the picture, by nearest upsampling and convolutions, and the buffers they need.

    spare: a buffer like `src` that may be overwritten. free: number of the first new buffer.
    """
    steps: list[Step] = []
    buffers: list[Buffer] = []
    resolution = 1
    for doubling in doublings:
        resolution *= doubling.factor
        upsampled = free + len(buffers)
        buffers += [Buffer(channels, resolution)] * 2
        steps.append(Upsample(src, upsampled, Interpolation.NEAREST))
        steps.append(leaky_conv_step(doubling.conv, upsampled, upsampled + 1, doubling.slope))
        src, spare = upsampled + 1, upsampled
    steps.append(leaky_conv_step(high.conv, src, spare, high.slope))
    return (*steps, Reconstruct(spare, kernel, 1)), buffers


def expect_leaky_relu(module: object, path: str) -> float:
    """The slope of an `nn.LeakyReLU`."""
    if not isinstance(module, nn.LeakyReLU):
        raise refuse(path, "an nn.LeakyReLU", module)
    return module.negative_slope


def expect_folded(module: object, path: str, factor: int) -> nn.Conv2d:
    """A 3x3 head that reads squares of factor x factor pixels as channels (`patches.fold_pixels`)."""
    conv = expect_conv(module, path, kernel=3)
    if conv.in_channels % factor**2:
        raise refuse(path, f"in_channels a multiple of {factor**2}, pixels folded into channels", conv.in_channels)
    return conv


def normalisation(model: nn.Module, colors: int) -> tuple[float, Tensor]:
    """img_range, and the mean ``[colors]`` in float64."""
    img_range = expect_number(getattr(model, "img_range", None), "img_range")
    if not img_range > 0:
        raise refuse("img_range", "a number above 0", img_range)
    return img_range, expect_per_color(model, "mean", colors)


def expect_per_color(model: nn.Module, name: str, colors: int) -> Tensor:
    """An attribute ``[1, C, 1, 1]`` as ``[C]``, float64 on the CPU."""
    value = getattr(model, name, None)
    if not isinstance(value, Tensor) or tuple(value.shape) != (1, colors, 1, 1):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise refuse(name, f"a tensor [1, {colors}, 1, 1]", got)
    return value.detach().flatten().to(device="cpu", dtype=torch.float64)


def affine(scale: float | Tensor, offset: Tensor) -> nn.Conv2d:
    """``scale * x + offset`` as a 1x1 convolution. offset: ``[C]``. scale: a number or ``[C]``."""
    conv: Any = nn.utils.skip_init(nn.Conv2d, len(offset), len(offset), 1, dtype=torch.float64)  # typed as a Module
    with torch.no_grad():
        conv.weight.copy_((scale * torch.eye(len(offset), dtype=torch.float32, device="cpu"))[:, :, None, None])
        conv.bias.copy_(offset)
    return conv


def exits(
    model: nn.Module, channels: int, blocks: int, src: int, pool_kind: type[nn.Module] = nn.AdaptiveAvgPool2d
) -> tuple[Exit | None, int, float | None]:
    """The shared exit, the number of blocks between exits, and the model's threshold. No exit without regressor."""
    if not hasattr(model, "regressor"):
        return None, blocks, None
    interval = getattr(model, "exit_interval", None)
    if not isinstance(interval, int) or not 1 <= interval <= blocks:
        raise refuse("exit_interval", f"a whole number from 1 to {blocks}", repr(interval))
    pool, flatten, linear, tanh = expect_sequence(model.regressor, "regressor", 4)
    for i, (layer, kind) in enumerate(((pool, pool_kind), (flatten, nn.Flatten), (linear, nn.Linear), (tanh, nn.Tanh))):
        if not isinstance(layer, kind):
            raise refuse(f"regressor.{i}", f"an nn.{kind.__name__}", layer)
    if pool.output_size not in (1, (1, 1)):
        raise refuse("regressor.0", "output_size 1", pool.output_size)
    if (linear.in_features, linear.out_features) != (channels, 1):
        raise refuse("regressor.2", f"nn.Linear({channels}, 1)", f"({linear.in_features}, {linear.out_features})")
    threshold = getattr(model, "exit_threshold", None)
    if threshold is not None:
        threshold = expect_number(threshold, "exit_threshold")
    bias = linear.weight.new_zeros(1) if linear.bias is None else linear.bias
    return Exit(src, linear.weight[0], bias), interval, threshold


def stages(
    blocks: Sequence[Sequence[Step]],
    interval: int,
    exit_step: Exit | None,
    *,
    first: int,
    stream: int,
    exit_at_end: bool = False,
) -> tuple[Stage, ...]:
    """Blocks of steps, cut into stages of `interval` blocks. An exit ends each full stage.

    first: the buffer that the first block reads. The others read `stream`.
    exit_at_end: the last stage has an exit even if it is not full.
    """
    made = []
    for begin in range(0, len(blocks), interval):
        steps = [step for block in blocks[begin : begin + interval] for step in block]
        if exit_step is not None and (exit_at_end or begin + interval <= len(blocks)):
            steps.append(exit_step)
        made.append(Stage(first if begin == 0 else stream, stream, tuple(steps)))
    return tuple(made)


def collapsed(tail: Sequence[nn.Module]) -> CollapsedTail:
    """The modules of a linear tail, run in order, as one kernel per border class."""
    try:
        return collapse_tail(linear_steps(tail))
    except ValueError as error:  # its layers are known, but together they reach too far
        raise NotRecognised(f"model.{error}") from error


def unpacked(upsampler: object, path: str) -> list[Network]:
    """The layers of an upsampler. A PixelShufflePack of mmagic becomes a conv and a PixelShuffle."""
    layers: list[Network] = []
    for i, layer in enumerate(expect_sequence(upsampler, path)):
        if isinstance(getattr(layer, "upsample_conv", None), nn.Module):
            expect_only_children(layer, f"{path}.{i}.", ("upsample_conv",))
            factor = expect_whole(getattr(layer, "scale_factor", None), f"{path}.{i}.scale_factor")
            layers += [layer.upsample_conv, nn.PixelShuffle(factor)]
        else:
            layers.append(layer)
    return layers


def expect_upsampler(upsampler: object, path: str, channels: int) -> int:
    """Scale of ``[conv, PixelShuffle, conv, PixelShuffle, ...]``. With anything between them it would not collapse."""
    layers = unpacked(upsampler, path)
    if len(layers) % 2:
        raise refuse(path, "pairs of conv and PixelShuffle", ", ".join(type(m).__name__ for m in layers) or "nothing")
    scale = 1
    for i in range(0, len(layers), 2):
        conv, shuffle = layers[i : i + 2]
        if not isinstance(shuffle, nn.PixelShuffle):
            raise refuse(f"{path}.{i + 1}", "an nn.PixelShuffle", shuffle)
        factor = shuffle.upscale_factor
        expect_conv(conv, f"{path}.{i}", kernel=3, in_channels=channels, out_channels=channels * factor**2)
        scale *= factor
    return scale
