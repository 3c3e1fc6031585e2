"""EDSR-shaped networks in the layout of EDSR-PyTorch and of the APE authors.

sub_mean, add_mean   1x1 convs 3 -> 3, both or neither
head                 [conv 3x3]
body                 [block, ..., block, conv 3x3]; block: body = [conv, ReLU, conv], res_scale
tail                 [Upsampler = [conv, PixelShuffle, ...], conv 3x3]
regressor            [AdaptiveAvgPool2d(1), Flatten, Linear(C, 1), Tanh], with exit_interval and
                     exit_threshold; absent in a plain EDSR, which then runs whole
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ape_kernels.adapters.recognise import (
    expect_conv,
    expect_number,
    expect_only_children,
    expect_sequence,
    refuse,
)
from ape_kernels.collapse import collapse_tail
from ape_kernels.program import INPUT, Activation, Buffer, Conv, Exit, PatchProgram, Reconstruct, Stage, Step

OUTLINE = "head, body and tail"
PARTS = ("sub_mean", "add_mean", "head", "body", "tail", "regressor")
SHIFTED, HEAD, STREAM, HIDDEN = 1, 2, 3, 4  # buffers, after INPUT


def matches(model: nn.Module) -> bool:
    return all(hasattr(model, name) for name in ("head", "body", "tail"))


def convert(model: nn.Module) -> PatchProgram:
    expect_only_children(model, "", PARTS)
    (head,) = expect_sequence(model.head, "head", 1)
    head = expect_conv(head, "head.0", kernel=3)
    channels, colors = head.out_channels, head.in_channels
    shift, source = _mean_shift(model, colors)
    *blocks, closing = expect_sequence(model.body, "body")
    closing = expect_conv(closing, f"body.{len(blocks)}", kernel=3, in_channels=channels, out_channels=channels)
    if not blocks:
        raise refuse("body", "residual blocks before the closing conv", "none")
    block_steps = [_block(block, f"body.{i}", channels, first=i == 0) for i, block in enumerate(blocks)]
    exit_step, interval, exit_threshold = _exits(model, channels, len(blocks))
    stages = []
    for begin in range(0, len(blocks), interval):
        steps = [step for block in block_steps[begin : begin + interval] for step in block]
        if exit_step is not None and begin + interval <= len(blocks):
            steps.append(exit_step)
        stages.append(Stage(HEAD if begin == 0 else STREAM, STREAM, tuple(steps)))
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors), Buffer(channels), Buffer(channels), Buffer(channels)),
        head=(*shift, _conv(head, source, HEAD)),
        stages=tuple(stages),
        tail=(_conv(closing, STREAM, HIDDEN, add=HEAD), _reconstruct(model, channels, colors)),
        exit_threshold=exit_threshold,
    )


def _mean_shift(model: nn.Module, colors: int) -> tuple[tuple[Step, ...], int]:
    """The conv that subtracts the mean, if any, and the buffer the head then reads.

    It stays a step of its own: folded into the head it would be wrong at the borders, where the head
    pads with zeros after the shift.
    """
    names = [name for name in ("sub_mean", "add_mean") if isinstance(getattr(model, name, None), nn.Module)]
    if not names:
        return (), INPUT
    if len(names) == 1:
        raise refuse(names[0], "sub_mean and add_mean both, or neither", f"{names[0]} alone")
    for name in names:
        expect_conv(getattr(model, name), name, kernel=1, in_channels=colors, out_channels=colors)
    return (_conv(model.sub_mean, INPUT, SHIFTED),), SHIFTED


def _block(block: nn.Module, path: str, channels: int, first: bool) -> tuple[Step, ...]:
    """``stream + res_scale * conv(relu(conv(stream)))``; the first block takes the stream from the head."""
    if not hasattr(block, "body"):
        raise refuse(path, "a residual block with .body = [conv, ReLU, conv]", block)
    expect_only_children(block, f"{path}.", ("body",))
    conv1, act, conv2 = expect_sequence(block.body, f"{path}.body", 3)
    conv1 = expect_conv(conv1, f"{path}.body.0", kernel=3, in_channels=channels, out_channels=channels)
    conv2 = expect_conv(conv2, f"{path}.body.2", kernel=3, in_channels=channels, out_channels=channels)
    if not isinstance(act, nn.ReLU):
        raise refuse(f"{path}.body.1", "an nn.ReLU", act)
    scale = expect_number(getattr(block, "res_scale", 1.0), f"{path}.res_scale")
    stream = HEAD if first else STREAM
    return (
        _conv(conv1, stream, HIDDEN, activation=Activation.RELU),
        _conv(conv2, HIDDEN, STREAM, scale=scale, add=stream),
    )


def _exits(model: nn.Module, channels: int, blocks: int) -> tuple[Exit | None, int, float | None]:
    """The shared exit, the blocks between exits and the model's own threshold; no exit for a plain EDSR."""
    if not hasattr(model, "regressor"):
        return None, blocks, None
    pool, flatten, linear, tanh = expect_sequence(model.regressor, "regressor", 4)
    for i, (layer, kind) in enumerate(
        ((pool, nn.AdaptiveAvgPool2d), (flatten, nn.Flatten), (linear, nn.Linear), (tanh, nn.Tanh))
    ):
        if not isinstance(layer, kind):
            raise refuse(f"regressor.{i}", f"an nn.{kind.__name__}", layer)
    if pool.output_size not in (1, (1, 1)):
        raise refuse("regressor.0", "output_size 1", pool.output_size)
    if (linear.in_features, linear.out_features) != (channels, 1):
        raise refuse("regressor.2", f"nn.Linear({channels}, 1)", f"({linear.in_features}, {linear.out_features})")
    interval = getattr(model, "exit_interval", None)
    if not isinstance(interval, int) or not 1 <= interval <= blocks:
        raise refuse("exit_interval", f"a whole number from 1 to {blocks}", repr(interval))
    threshold = getattr(model, "exit_threshold", None)
    if threshold is not None:
        threshold = expect_number(threshold, "exit_threshold")
    bias = linear.weight.new_zeros(1) if linear.bias is None else linear.bias
    return Exit(STREAM, linear.weight[0], bias), interval, threshold


def _reconstruct(model: nn.Module, channels: int, colors: int) -> Reconstruct:
    upsampler, last = expect_sequence(model.tail, "tail", 2)
    upscale = _upscale(upsampler, channels)
    expect_conv(last, "tail.1", kernel=3, in_channels=channels, out_channels=colors)
    add_mean = getattr(model, "add_mean", None)
    exact = nn.Sequential(model.tail) if add_mean is None else nn.Sequential(model.tail, add_mean)
    with torch.inference_mode(False):
        exact = copy.deepcopy(exact).to(device="cpu", dtype=torch.float64).requires_grad_(False)
    return Reconstruct(HIDDEN, collapse_tail(exact, channels, colors, upscale), upscale)


def _upscale(upsampler: object, channels: int) -> int:
    """Scale of ``[conv, PixelShuffle, conv, PixelShuffle, ...]``; anything between them would not collapse."""
    layers = expect_sequence(upsampler, "tail.0")
    if len(layers) % 2:
        raise refuse(
            "tail.0", "pairs of conv and PixelShuffle", ", ".join(type(m).__name__ for m in layers) or "nothing"
        )
    scale = 1
    for i in range(0, len(layers), 2):
        conv, shuffle = layers[i : i + 2]
        if not isinstance(shuffle, nn.PixelShuffle):
            raise refuse(f"tail.0.{i + 1}", "an nn.PixelShuffle", shuffle)
        factor = shuffle.upscale_factor
        expect_conv(conv, f"tail.0.{i}", kernel=3, in_channels=channels, out_channels=channels * factor**2)
        scale *= factor
    return scale


def _conv(conv: nn.Conv2d, src: int, dst: int, **options: object) -> Conv:
    return Conv(src, dst, conv.weight, conv.bias, **options)
