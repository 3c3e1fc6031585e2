"""VDSR in the layouts of the APE authors and of EDSR-PyTorch (Kim et al. 2016).

upsample             nn.Upsample, bicubic; absent where the input comes upsampled already
sub_mean, add_mean   1x1 convs C -> C
body                 [[conv 3x3, ReLU], ..., [conv 3x3]]; the last back to the colors
regressor            as in EDSR; exits count the entries of body between its first and its last

The picture is add_mean(x + body(x)) with x = sub_mean(upsample(input)): all layers run at its resolution.
"""

from __future__ import annotations

from torch import nn

from ape_kernels.adapters.chain import Layer, chain, expect_activation, expect_bicubic
from ape_kernels.adapters.parts import conv_step, exits, one_kernel
from ape_kernels.adapters.recognise import Network, expect_conv, expect_only_children, expect_sequence, refuse
from ape_kernels.program import INPUT, Buffer, Interpolation, PatchProgram, Reconstruct, Upsample

OUTLINE = "sub_mean, body and add_mean"
PARTS = ("upsample", "sub_mean", "body", "add_mean", "regressor")
PICTURE, SHIFTED, STREAM, OTHER = 1, 2, 3, 4  # buffers, after INPUT


def matches(model: nn.Module) -> bool:
    has = lambda name: isinstance(getattr(model, name, None), nn.Module)  # noqa: E731
    return all(map(has, ("sub_mean", "body", "add_mean"))) and not any(map(has, ("head", "tail")))


def convert(model: Network) -> PatchProgram:
    expect_only_children(model, "", PARTS)
    first, *blocks, last = _entries(model)
    colors, channels = expect_conv(first[0], "body.0.0", kernel=3).in_channels, first[0].out_channels
    for name in ("sub_mean", "add_mean"):
        expect_conv(getattr(model, name), name, kernel=1, in_channels=colors, out_channels=colors)
    layers = [_layer(entry, f"body.{i}", channels) for i, entry in enumerate((first, *blocks))]
    path = f"body.{len(layers)}"
    (closing,) = expect_sequence(last, path, 1)
    expect_conv(closing, f"{path}.0", kernel=3, in_channels=channels, out_channels=colors)
    scale = expect_bicubic(model.upsample, "upsample") if hasattr(model, "upsample") else 1
    exit_step, interval, exit_threshold = exits(model, channels, len(blocks), STREAM)
    head, stages = chain(layers, interval, exit_step, SHIFTED, STREAM, OTHER)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors, scale), Buffer(colors, scale), *[Buffer(channels, scale)] * 2),
        head=(
            Upsample(INPUT, PICTURE, Interpolation.BICUBIC),
            conv_step(model.sub_mean, PICTURE, SHIFTED),
            conv_step(model.add_mean, SHIFTED, PICTURE),
            head,
        ),
        stages=stages,
        tail=(_reconstruct(closing, model.add_mean),),
        exit_threshold=exit_threshold,
    )


def _entries(model: Network) -> list[Network]:
    entries = expect_sequence(model.body, "body")
    if len(entries) < 3:
        raise refuse("body", "at least 3 entries", len(entries))
    for i, entry in enumerate(entries):
        expect_sequence(entry, f"body.{i}", 1 if i == len(entries) - 1 else 2)
    return entries


def _layer(entry: Network, path: str, channels: int) -> Layer:
    conv, act = entry
    in_channels = None if path == "body.0" else channels
    expect_conv(conv, f"{path}.0", kernel=3, in_channels=in_channels, out_channels=channels)
    return Layer(conv.weight, conv.bias, *expect_activation(act, f"{path}.1", channels))


def _reconstruct(closing: nn.Conv2d, add_mean: nn.Conv2d) -> Reconstruct:
    """``add_mean(x + closing(features))``: the head has done add_mean(x) already, its matrix goes into `closing`."""
    matrix = add_mean.weight.detach().double()[:, :, 0, 0]
    weight = (matrix @ closing.weight.detach().double().flatten(1)).view_as(closing.weight)
    bias = None if closing.bias is None else matrix @ closing.bias.detach().double()
    return Reconstruct(STREAM, one_kernel(weight, bias), upscale=1, add=PICTURE)
