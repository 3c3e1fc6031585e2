"""SRResNet (Ledig et al. 2017) with batch norm, and MSRResNet without.

BasicSR's MSRResNet      conv_first, body [block, ...], upconv1, upconv2 (only at scale 4), pixel_shuffle, conv_hr,
                         conv_last, lrelu; a block is conv1, relu, conv2, skip
ClassSR's, KAIR's        the same with recon_trunk and HRconv
mmagic's                 the same with trunk_net, and upsample1, upsample2 (PixelShufflePack, no activation after them)
                         in place of upconv1, upconv2; img_upsampler
twtygqyy's SRResNet      conv_input 9x9, relu, residual [block, ...], conv_mid, bn_mid, skip, upscale4x [conv,
                         PixelShuffle, activation, ...], conv_output 9x9; a block is conv1, bn1, relu, conv2, bn2, skip

An MSRResNet adds the input, upsampled bilinearly. Batch norm is that of evaluation mode and is folded into the
convolution before it. The tail has activations between its pixel shuffles and does not collapse. Pixel shuffles and
the bilinear upsampling are `Module` steps, which only the torch backend runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ape_kernels.adapters.chain import expect_activation, expect_shuffle
from ape_kernels.adapters.parts import exits, one_kernel, stages, unpacked
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_number,
    expect_only_children,
    expect_sequence,
    has_parts,
    refuse,
)
from ape_kernels.program import (
    INPUT,
    Activation,
    Buffer,
    Conv,
    Module,
    PatchProgram,
    Reconstruct,
    Step,
)

LAYOUTS = (
    ("conv_first", "body", "upconv1", "conv_hr", "conv_last"),
    ("conv_first", "recon_trunk", "upconv1", "HRconv", "conv_last"),
    ("conv_first", "trunk_net", "upsample1", "conv_hr", "conv_last"),
    ("conv_input", "residual", "conv_mid", "bn_mid", "upscale4x", "conv_output"),
)
BASE, HEAD, STREAM, HIDDEN = 1, 2, 3, 4  # buffers, after INPUT
FREE = HIDDEN + 1


@dataclass(frozen=True)
class _Layer:
    """A convolution and the activation after it. slope: ``[C_out]``, of a leaky one."""

    weight: Tensor
    bias: Tensor | None
    activation: Activation = Activation.NONE
    slope: Tensor | None = None

    def step(self, src: int, dst: int, *, scale: float = 1.0, add: int | None = None) -> Conv:
        return Conv(src, dst, self.weight, self.bias, self.activation, self.slope, scale, add)

    def activated(self, act: object, path: str) -> _Layer:
        """The same layer with an activation after it, or after the pixel shuffle that follows it."""
        channels = len(self.weight)
        if isinstance(act, nn.PReLU) and channels % act.num_parameters == 0:
            slopes = act.weight.repeat_interleave(channels // act.num_parameters)
            return _Layer(self.weight, self.bias, Activation.PRELU, slopes)
        return _Layer(self.weight, self.bias, *expect_activation(act, path, channels))


def matches(model: nn.Module) -> bool:
    return any(has_parts(model, layout) for layout in LAYOUTS)


def convert(model: Network) -> PatchProgram:
    if has_parts(model, LAYOUTS[3]):
        return _with_norm(model)
    body, first, high = next((name, up, hr) for _, name, up, hr, _ in LAYOUTS[:3] if has_parts(model, (name, up, hr)))
    packed = first == "upsample1"
    ups = [name for i in (1, 2) if hasattr(model, name := f"{first[:-1]}{i}")]
    expect_only_children(
        model, "", ("conv_first", body, *ups, high, "conv_last", "lrelu", "pixel_shuffle", "img_upsampler")
    )
    head, channels, colors = _head(model, "conv_first", 3)
    if packed:
        layers = unpacked(nn.Sequential(*(getattr(model, name) for name in ups)), "upsample")
        shuffled = [
            (_conv(conv, "upsample1", 3), expect_shuffle(shuffle, "upsample1")) for conv, shuffle in _twos(layers)
        ]
    else:
        wide = [(_conv(getattr(model, name), name, 3), name) for name in ups]
        shuffled = [(conv.activated(model.lrelu, "lrelu"), _factor(conv, name, channels)) for conv, name in wide]
    last = _conv(model.conv_last, "conv_last", 3)
    scale = math.prod(factor for _, factor in shuffled)
    steps, buffers, src = _shuffles(shuffled, STREAM, channels)
    hidden = FREE + len(buffers)
    steps.append(_conv(getattr(model, high), high, 3).activated(model.lrelu, "lrelu").step(src, hidden))
    blocks = expect_sequence(getattr(model, body), body)
    bilinear = nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
    return _program(
        model,
        buffers=(Buffer(colors, scale), *[Buffer(channels)] * 3, *buffers, Buffer(channels, scale)),
        head=(Module(INPUT, BASE, bilinear), head.activated(model.lrelu, "lrelu").step(INPUT, HEAD)),
        blocks=[_plain_block(block, f"{body}.{i}", STREAM if i else HEAD) for i, block in enumerate(blocks)],
        tail=(*steps, Reconstruct(hidden, one_kernel(last.weight, last.bias), 1, add=BASE)),
    )


def _with_norm(model: Network) -> PatchProgram:
    expect_only_children(model, "", (*LAYOUTS[3], "relu"))
    head, channels, colors = _head(model, "conv_input", 9)
    layers = expect_sequence(model.upscale4x, "upscale4x")
    if len(layers) % 3:
        raise refuse("upscale4x", "threes of conv, PixelShuffle and activation", f"{len(layers)} layers")
    shuffled: list[tuple[_Layer, int]] = []
    for i in range(0, len(layers), 3):
        conv, shuffle, act = layers[i : i + 3]
        conv = _conv(conv, f"upscale4x.{i}", 3).activated(act, f"upscale4x.{i + 2}")
        shuffled.append((conv, expect_shuffle(shuffle, f"upscale4x.{i + 1}")))
    steps, buffers, src = _shuffles(shuffled, HIDDEN, channels)
    middle = _conv(model.conv_mid, "conv_mid", 3, model.bn_mid, "bn_mid")
    last = _conv(model.conv_output, "conv_output", 9)
    blocks = expect_sequence(model.residual, "residual")
    return _program(
        model,
        buffers=(Buffer(colors), *[Buffer(channels)] * 3, *buffers),
        head=(head.activated(model.relu, "relu").step(INPUT, HEAD),),
        blocks=[_norm_block(block, f"residual.{i}", STREAM if i else HEAD) for i, block in enumerate(blocks)],
        tail=(middle.step(STREAM, HIDDEN, add=HEAD), *steps, Reconstruct(src, one_kernel(last.weight, last.bias), 1)),
    )


def _program(
    model: nn.Module,
    *,
    buffers: Sequence[Buffer],
    head: tuple[Step, ...],
    blocks: Sequence[Sequence[Step]],
    tail: tuple[Step, ...],
) -> PatchProgram:
    """The program of recognised parts. buffers: those after INPUT, which has as many channels as the first of them."""
    if not blocks:
        raise refuse("body", "residual blocks", "none")
    exit_step, interval, exit_threshold = exits(model, buffers[HEAD - 1].channels, len(blocks), STREAM)
    return PatchProgram(
        buffers=(Buffer(buffers[0].channels), *buffers),
        head=head,
        stages=stages(blocks, interval, exit_step, first=HEAD, stream=STREAM),
        tail=tail,
        exit_threshold=exit_threshold,
    )


def _head(model: Network, name: str, kernel: int) -> tuple[_Layer, int, int]:
    """The first convolution, the channels that it writes, and the colors that it reads."""
    conv = _conv(getattr(model, name), name, kernel)
    channels, colors = conv.weight.shape[:2]
    return conv, channels, colors


def _shuffles(shuffled: Sequence[tuple[_Layer, int]], src: int, channels: int) -> tuple[list[Step], list[Buffer], int]:
    """Convolutions, each followed by a pixel shuffle; the buffers they need, from FREE on; and the last of these."""
    steps: list[Step] = []
    buffers: list[Buffer] = []
    resolution = 1
    for conv, factor in shuffled:
        wide = FREE + len(buffers)
        buffers.append(Buffer(len(conv.weight), resolution))
        resolution *= factor
        buffers.append(Buffer(channels, resolution))
        steps += [conv.step(src, wide), Module(wide, wide + 1, nn.PixelShuffle(factor))]
        src = wide + 1
    return steps, buffers, src


def _factor(conv: _Layer, path: str, channels: int) -> int:
    """The factor of the pixel shuffle that all convolutions share."""
    factor = math.isqrt(len(conv.weight) // channels)
    if factor**2 * channels != len(conv.weight):
        raise refuse(path, f"out_channels 4 or 9 times {channels}", len(conv.weight))
    return factor


def _plain_block(block: Network, path: str, src: int) -> tuple[Step, ...]:
    expect_only_children(block, f"{path}.", ("conv1", "relu", "conv2"))
    first, second = (_conv(getattr(block, name, None), f"{path}.{name}", 3) for name in ("conv1", "conv2"))
    act = getattr(block, "relu", nn.ReLU())  # the forward calls it as a function
    scale = expect_number(getattr(block, "res_scale", 1), f"{path}.res_scale")
    hidden = first.activated(act, f"{path}.relu").step(src, HIDDEN)
    return hidden, second.step(HIDDEN, STREAM, scale=scale, add=src)


def _norm_block(block: Network, path: str, src: int) -> tuple[Step, ...]:
    names = ("conv1", "bn1", "relu", "conv2", "bn2")
    expect_only_children(block, f"{path}.", names)
    conv1, bn1, relu, conv2, bn2 = (getattr(block, name, None) for name in names)
    first = _conv(conv1, f"{path}.conv1", 3, bn1, f"{path}.bn1").activated(relu, f"{path}.relu")
    second = _conv(conv2, f"{path}.conv2", 3, bn2, f"{path}.bn2")
    return first.step(src, HIDDEN), second.step(HIDDEN, STREAM, add=src)


def _conv(conv: object, path: str, kernel: int, norm: object = None, norm_path: str = "") -> _Layer:
    """A convolution. If a batch norm follows, it is folded in."""
    conv = expect_conv(conv, path, kernel=kernel)
    if not norm_path:
        return _Layer(conv.weight, conv.bias)
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise refuse(norm_path, "an nn.BatchNorm2d with running statistics", norm)
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * factor
    if norm.affine:
        factor, shift = factor * norm.weight.detach().double(), shift * norm.weight.detach().double()
        shift = shift + norm.bias.detach().double()
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * factor
    return _Layer(conv.weight.detach().double() * factor[:, None, None, None], shift)


def _twos(layers: Sequence[Network]) -> list[tuple[Network, Network]]:
    return list(zip(layers[::2], layers[1::2], strict=True))
