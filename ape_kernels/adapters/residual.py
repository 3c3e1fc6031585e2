"""Residual networks in a linear frame: EDSR and RCAN, as the APE authors, EDSR-PyTorch and BasicSR lay them out.

A head convolution, residual blocks or groups of them, a closing convolution with the global skip, and
a tail without activations that collapses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ape_kernels.adapters.parts import collapsed, conv_step, exits, expect_upsampler, stages
from ape_kernels.adapters.recognise import expect_conv, expect_only_children, expect_sequence, refuse
from ape_kernels.program import (
    INPUT,
    Activation,
    Buffer,
    ChannelAttention,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Step,
    Upsample,
)

# buffers, after INPUT; networks without attention stop at HIDDEN
SHIFTED, HEAD, STREAM, HIDDEN, GROUP, FEATURES = range(1, 7)
PARTS = ("sub_mean", "add_mean", "head", "body", "tail", "regressor")

# (block, its path, channels, buffer the stream is in) -> steps that leave the stream in STREAM
Recognise = Callable[[nn.Module, str, int, int], tuple[Step, ...]]


def has_frame(model: nn.Module) -> bool:
    """Whether `model` has the attributes of the authors' frame."""
    return all(hasattr(model, name) for name in ("head", "body", "tail"))


def convert_frame(model: nn.Module, recognise: Recognise) -> PatchProgram:
    """The program of a network in the authors' frame, its blocks as `recognise` reads them.

    sub_mean, add_mean   1x1 convs, both or neither
    head                 [conv 3x3]
    body                 [block, ..., block, conv 3x3]
    tail                 [Upsampler = [conv, PixelShuffle, ...], conv 3x3]
    regressor            [AdaptiveAvgPool2d(1), Flatten, Linear(C, 1), Tanh], with exit_interval and
                         exit_threshold; absent in a plain network, which then runs whole. With a true
                         head_exit there is an exit before the first block too
    """
    expect_only_children(model, "", PARTS)
    (head,) = expect_sequence(model.head, "head", 1)
    head = expect_conv(head, "head.0", kernel=3)
    channels, colors = head.out_channels, head.in_channels
    shift = _mean_shift(model, colors)
    blocks, closing = expect_chain(model.body, "body", channels)
    upsampler, last = expect_sequence(model.tail, "tail", 2)
    upscale = expect_upsampler(upsampler, "tail.0", channels)
    expect_conv(last, "tail.1", kernel=3, in_channels=channels, out_channels=colors)
    return assemble(
        model,
        shift=None if shift is None else shift[0],
        head=head,
        blocks=blocks,
        recognise=recognise,
        closing=closing,
        tail=(model.tail,) if shift is None else (model.tail, shift[1]),
        upscale=upscale,
    )


def assemble(
    model: nn.Module,
    *,
    shift: nn.Conv2d | None,
    head: nn.Conv2d,
    blocks: Sequence[nn.Module],
    recognise: Recognise,
    closing: nn.Conv2d,
    tail: Sequence[nn.Module],
    upscale: int,
) -> PatchProgram:
    """The program of recognised parts; the exits are read off `model`.

    shift: 1x1 conv before the head, or None. It stays a step of its own: folded into the head it would
    be wrong at the borders, where the head pads with zeros after the shift.
    blocks: the children of ``model.body``. tail: linear modules after the global skip, run in order.
    """
    channels, colors = head.out_channels, head.in_channels
    exit_step, interval, exit_threshold = exits(model, channels, len(blocks), STREAM)
    first, before = HEAD, ()
    if exit_step is not None and getattr(model, "head_exit", False):
        # a patch may leave before the first block: the tail takes what it left with from STREAM
        first, before = STREAM, (Stage(HEAD, STREAM, (Upsample(HEAD, STREAM, Interpolation.NEAREST), exit_step)),)
    steps = [recognise(block, f"body.{i}", channels, STREAM if i else first) for i, block in enumerate(blocks)]
    last_buffer = max(step.dst for block in steps for step in block)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors), *(Buffer(channels) for _ in range(HEAD, last_buffer + 1))),
        head=(
            *(() if shift is None else (conv_step(shift, INPUT, SHIFTED),)),
            conv_step(head, INPUT if shift is None else SHIFTED, HEAD),
        ),
        stages=(*before, *stages(steps, interval, exit_step, first=first, stream=STREAM)),
        tail=(
            conv_step(closing, STREAM, HIDDEN, add=HEAD),
            Reconstruct(HIDDEN, collapsed(tail, channels, colors, upscale), upscale),
        ),
        exit_threshold=exit_threshold,
    )


def expect_chain(body: object, path: str, channels: int) -> tuple[list[nn.Module], nn.Conv2d]:
    """The blocks, one at least, and the closing convolution of an `nn.Sequential`."""
    layers = expect_sequence(body, path)
    if len(layers) < 2:
        raise refuse(path, "residual blocks and a closing conv", f"{len(layers)} layers")
    *blocks, closing = layers
    return blocks, expect_conv(closing, f"{path}.{len(blocks)}", kernel=3, in_channels=channels, out_channels=channels)


def residual_block(
    layers: Sequence[nn.Module], paths: Sequence[str], channels: int, src: int, scale: float
) -> tuple[Step, ...]:
    """``src + scale * conv(relu(conv(src)))``, layers ``conv, ReLU, conv``."""
    conv1, conv2 = _expect_convs(layers, paths, channels)
    return (
        conv_step(conv1, src, HIDDEN, activation=Activation.RELU),
        conv_step(conv2, HIDDEN, STREAM, scale=scale, add=src),
    )


def attention_block(
    layers: Sequence[nn.Module], paths: Sequence[str], channels: int, src: int, scale: float
) -> tuple[Step, ...]:
    """``src + scale * attention(conv(relu(conv(src))))`` into GROUP.

    layers: ``conv, ReLU, conv``, then of the attention ``AdaptiveAvgPool2d(1), conv 1x1, ReLU, conv 1x1, Sigmoid``.
    """
    conv1, conv2 = _expect_convs(layers[:3], paths[:3], channels)
    for i, kind in ((3, nn.AdaptiveAvgPool2d), (5, nn.ReLU), (7, nn.Sigmoid)):
        if not isinstance(layers[i], kind):
            raise refuse(paths[i], f"an nn.{kind.__name__}", layers[i])
    if layers[3].output_size not in (1, (1, 1)):
        raise refuse(paths[3], "output_size 1", layers[3].output_size)
    squeeze = expect_conv(layers[4], paths[4], kernel=1, in_channels=channels)
    expand = expect_conv(layers[6], paths[6], kernel=1, in_channels=squeeze.out_channels, out_channels=channels)
    biases = [conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias for conv in (squeeze, expand)]
    return (
        conv_step(conv1, src, HIDDEN, activation=Activation.RELU),
        conv_step(conv2, HIDDEN, FEATURES),
        ChannelAttention(
            FEATURES,
            GROUP,
            squeeze.weight.flatten(1),
            biases[0],
            expand.weight.flatten(1),
            biases[1],
            scale=scale,
            add=src,
        ),
    )


def attention_group(
    blocks: Sequence[nn.Module], recognise: Recognise, path: str, closing: nn.Conv2d, channels: int, src: int
) -> tuple[Step, ...]:
    """``src + conv(blocks(src))``. The blocks, at `path`, work in GROUP: the group's input is needed at its end."""
    steps: list[Step] = []
    for i, block in enumerate(blocks):
        steps += recognise(block, f"{path}.{i}", channels, GROUP if i else src)
    return (*steps, conv_step(closing, GROUP, STREAM, add=src))


def _expect_convs(layers: Sequence[nn.Module], paths: Sequence[str], channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The convolutions of ``conv, ReLU, conv``."""
    conv1 = expect_conv(layers[0], paths[0], kernel=3, in_channels=channels, out_channels=channels)
    conv2 = expect_conv(layers[2], paths[2], kernel=3, in_channels=channels, out_channels=channels)
    if not isinstance(layers[1], nn.ReLU):
        raise refuse(paths[1], "an nn.ReLU", layers[1])
    return conv1, conv2


def _mean_shift(model: nn.Module, colors: int) -> tuple[nn.Conv2d, nn.Conv2d] | None:
    """The convs that subtract and add the mean, or None."""
    names = [name for name in ("sub_mean", "add_mean") if isinstance(getattr(model, name, None), nn.Module)]
    if not names:
        return None
    if len(names) == 1:
        raise refuse(names[0], "sub_mean and add_mean both, or neither", f"{names[0]} alone")
    sub_mean, add_mean = (
        expect_conv(getattr(model, name), name, kernel=1, in_channels=colors, out_channels=colors) for name in names
    )
    return sub_mean, add_mean
