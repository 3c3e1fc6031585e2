"""Compact networks in the layout of BasicSR's SRVGGNetCompact (Real-ESRGAN).

body         ModuleList [conv 3x3, activation, ..., conv 3x3 to C * s * s]; PReLU, ReLU or LeakyReLU
upsampler    PixelShuffle; the input, upsampled to the nearest pixel, is added to the picture
"""

from __future__ import annotations

from torch import nn

from ape_kernels.adapters.chain import Layer, expect_activation, expect_shuffle, shuffled_chain
from ape_kernels.adapters.recognise import expect_conv, expect_only_children, refuse
from ape_kernels.program import Interpolation, PatchProgram

PARTS = ("body", "upsampler")
LAYOUTS = (PARTS,)


def matches(model: nn.Module) -> bool:
    has = lambda name: isinstance(getattr(model, name, None), nn.Module)  # noqa: E731
    return all(map(has, PARTS)) and not any(map(has, ("head", "tail", "conv_first")))


def convert(model: nn.Module) -> PatchProgram:
    expect_only_children(model, "", PARTS)
    if not isinstance(model.body, nn.ModuleList):
        raise refuse("body", "an nn.ModuleList", model.body)
    scale = expect_shuffle(model.upsampler, "upsampler")
    *body, last = model.body
    if len(body) < 4 or len(body) % 2:
        raise refuse("body", "pairs of conv and activation, at least 2, and a conv", f"{len(model.body)} layers")
    first = expect_conv(body[0], "body.0", kernel=3)
    colors, channels = first.in_channels, first.out_channels
    layers = []
    for i in range(0, len(body), 2):
        conv = expect_conv(
            body[i], f"body.{i}", kernel=3, in_channels=colors if i == 0 else channels, out_channels=channels
        )
        layers.append(Layer(conv.weight, conv.bias, *expect_activation(body[i + 1], f"body.{i + 1}", channels)))
    last = expect_conv(last, f"body.{len(body)}", kernel=3, in_channels=channels, out_channels=colors * scale**2)
    return shuffled_chain(model, layers, Layer(last.weight, last.bias), scale, Interpolation.NEAREST)
