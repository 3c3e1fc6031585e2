"""Residual networks in a linear frame: EDSR and RCAN, as the APE authors, EDSR-PyTorch and BasicSR lay them out.

The frame is a head convolution, residual blocks or groups of them, a closing convolution with the global skip,
and a tail without activations, which collapses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d

from ape_kernels.adapters.parts import affine, collapsed, conv_step, exits, expect_folded, expect_upsampler, stages
from ape_kernels.adapters.probe import entering, probe_patch
from ape_kernels.adapters.recognise import Network, expect_conv, expect_only_children, expect_sequence, refuse
from ape_kernels.program import (
    INPUT,
    Activation,
    Buffer,
    ChannelAttention,
    Exit,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Step,
    Upsample,
)

# buffers, after INPUT; HIDDEN is the last one of networks without attention
SHIFTED, HEAD, STREAM, HIDDEN, GROUP, FEATURES = range(1, 7)
PARTS = ("sub_mean", "add_mean", "head", "body", "tail", "regressor")

# (block, its path, channels, buffer the stream is in) -> steps that leave the stream in STREAM
Recognise = Callable[[nn.Module, str, int, int], tuple[Step, ...]]


def has_frame(model: nn.Module) -> bool:
    """Whether `model` has the attributes of the authors' frame."""
    return all(hasattr(model, name) for name in ("head", "body", "tail"))


def convert_frame(model: Network, recognise: Recognise, rgb_range: float | None = None, fold: int = 1) -> PatchProgram:
    """The program of a network in the authors' frame. `recognise` reads its blocks.

    sub_mean, add_mean   1x1 convs, both or neither (or nn.Identity)
    head                 [conv 3x3], with `fold` [PixelUnshuffle, conv 3x3]
    body                 [block, ..., block, conv 3x3]
    tail                 [Upsampler = [conv, PixelShuffle, ...], conv 3x3]
    regressor            [AdaptiveAvgPool2d(1), Flatten, Linear(C, 1), Tanh], with exit_interval and
                         exit_threshold; a plain network has none and runs whole. If head_exit is true, there
                         is an exit before the first block too

    rgb_range: the forward multiplies its input by it before sub_mean, and divides by it after add_mean. If it is None,
    a probe of the forward shows whether it is 1 or 255 (torchSR), and whether sub_mean and add_mean are used at all
    (super-image leaves them out).
    """
    expect_only_children(model, "", PARTS)
    head = _head(model.head, fold)
    channels, colors = head.out_channels, head.in_channels // fold**2
    shift = _mean_shift(model, colors, rgb_range, fold)
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
        fold=fold,
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
    fold: int = 1,
) -> PatchProgram:
    """The program of recognised parts. The exits are read from `model`.

    shift: 1x1 conv before the head, or None. It stays a step of its own. Folded into the head it would be wrong at the
    borders, because the head pads with zeros after the shift.
    blocks: the children of ``model.body``. tail: linear modules after the global skip, run in order, which upscale
    by `upscale`. fold: as in `PatchProgram`.
    """
    channels, colors = head.out_channels, head.in_channels
    exit_step, interval, exit_threshold = exits(model, channels, len(blocks), STREAM)
    first, before = HEAD, ()
    if exit_step is not None and getattr(model, "head_exit", False):
        # a patch may leave before the first block, and the tail reads STREAM
        first, before = STREAM, (Stage(HEAD, STREAM, (Upsample(HEAD, STREAM, Interpolation.NEAREST), exit_step)),)
    steps = [recognise(block, f"body.{i}", channels, STREAM if i else first) for i, block in enumerate(blocks)]
    last_buffer = max(step.dst for block in steps for step in block if not isinstance(step, Exit | Reconstruct))
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors), *(Buffer(channels) for _ in range(HEAD, last_buffer + 1))),
        head=(
            *(() if shift is None else (conv_step(shift, INPUT, SHIFTED),)),
            conv_step(head, INPUT if shift is None else SHIFTED, HEAD),
        ),
        stages=(*before, *stages(steps, interval, exit_step, first=first, stream=STREAM)),
        tail=(
            conv_step(closing, STREAM, HIDDEN, add=HEAD),
            Reconstruct(HIDDEN, collapsed(tail), upscale),
        ),
        exit_threshold=exit_threshold,
        fold=fold,
        multiple_of=fold,
    )


def expect_chain(body: object, path: str, channels: int) -> tuple[list[nn.Module], nn.Conv2d]:
    """The blocks, at least one, and the closing convolution of an `nn.Sequential`."""
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

    layers: ``conv, ReLU, conv``, then the attention, ``AdaptiveAvgPool2d(1), conv 1x1, ReLU, conv 1x1, Sigmoid``.
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
    """``src + conv(blocks(src))``. The blocks, at `path`, work in GROUP: the end of the group needs its input."""
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


def _head(head: object, fold: int) -> nn.Conv2d:
    """The first convolution. Where squares of pixels are folded into channels, the folding comes before it."""
    if fold == 1:
        (conv,) = expect_sequence(head, "head", 1)
        return expect_conv(conv, "head.0", kernel=3)
    unshuffle, conv = expect_sequence(head, "head", 2)
    if not isinstance(unshuffle, nn.PixelUnshuffle) or unshuffle.downscale_factor != fold:
        raise refuse("head.0", f"an nn.PixelUnshuffle({fold})", unshuffle)
    return expect_folded(conv, "head.1", fold)


def _mean_shift(
    model: nn.Module, colors: int, rgb_range: float | None, fold: int
) -> tuple[nn.Conv2d, nn.Conv2d] | None:
    """The convs before the head (on folded pixels) and after the tail. None where there is nothing to do."""
    given = {name: getattr(model, name, None) for name in ("sub_mean", "add_mean")}
    shifts = {name: m for name, m in given.items() if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)}
    if len(shifts) == 1:
        (name,) = shifts
        raise refuse(name, "sub_mean and add_mean both, or neither", f"{name} alone")
    size = dict(kernel=1, in_channels=colors, out_channels=colors)
    convs = [expect_conv(shift, name, **size) for name, shift in shifts.items()]
    if rgb_range is None:
        used, rgb_range = _probed(model, colors, convs)
        convs = convs if used else []
    if rgb_range == 1 and (fold == 1 or not convs):
        return (convs[0], convs[1]) if convs else None
    sub_mean, add_mean = convs or [affine(1, torch.zeros(colors, dtype=torch.float64, device="cpu"))] * 2
    return _pointwise(sub_mean, before=rgb_range, fold=fold), _pointwise(add_mean, after=1 / rgb_range)


def _probed(model: Network, colors: int, convs: Sequence[nn.Conv2d]) -> tuple[bool, float]:
    """Whether the forward shifts its pixels before the head, and by what it multiplies them before that: 1 or 255."""
    patch = probe_patch(next(model.parameters()), colors)
    seen = entering(model, model.head, patch)
    if seen is None or seen.shape != patch.shape:
        return True, 1.0
    readings: dict[tuple[bool, float], float] = {}
    for used, rgb_range in ((True, 1.0), (True, 255.0), (False, 1.0), (False, 255.0)):
        pixels = rgb_range * patch.float()
        if used and convs:
            sub_mean = convs[0]
            bias = None if sub_mean.bias is None else sub_mean.bias.detach().float()
            pixels = conv2d(pixels, sub_mean.weight.detach().float(), bias)
        readings[used, rgb_range] = float((pixels - seen).abs().max() / pixels.abs().max())
    return min(readings, key=lambda reading: readings[reading])


def _pointwise(conv: nn.Conv2d, *, before: float = 1.0, after: float = 1.0, fold: int = 1) -> nn.Conv2d:
    """``after * conv(before * x)`` of a 1x1 convolution in float64, for each pixel of fold x fold squares."""
    weight = conv.weight.detach().double().cpu()[:, :, 0, 0] * before * after
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().cpu() * after
    made = affine(1, bias.repeat_interleave(fold**2))
    with torch.no_grad():
        made.weight.copy_(torch.kron(weight, torch.eye(fold**2, dtype=weight.dtype, device="cpu"))[:, :, None, None])
    return made
