"""VDSR (Kim et al. 2016) in four layouts.

the APE authors',   upsample    nn.Upsample, bicubic, or none
EDSR-PyTorch's      sub_mean, add_mean    1x1 convs C -> C
                    body        [[conv 3x3, ReLU], ..., [conv 3x3]]; the last one writes colors
                    regressor   as in EDSR; exits count the entries of body, without its first and its last
torchSR's           sub_mean, add_mean, body [conv 3x3, ReLU, ..., conv 3x3]
twtygqyy's          input (conv 3x3), relu, residual_layer [(conv, relu), ...], output (conv 3x3)
the same, first     features [conv 3x3, ReLU, ..., conv 3x3]

The picture is add_mean(x + body(x)) with x = sub_mean(upsample(input)). All layers run at the resolution of the
picture. Without an `upsample`, a probe of the forward shows whether it gives the first convolution pixels that were
upsampled (bicubic).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ape_kernels.adapters.chain import Layer, chain, expect_activation, expect_bicubic
from ape_kernels.adapters.parts import conv_step, exits, one_kernel
from ape_kernels.adapters.probe import SIDE, entering, probe_patch
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_only_children,
    expect_sequence,
    has_parts,
    refuse,
)
from ape_kernels.program import INPUT, Buffer, Interpolation, PatchProgram, Reconstruct, Step, Upsample

LAYOUTS = (("sub_mean", "body", "add_mean"), ("input", "residual_layer", "output"), ("features",))
PARTS = ("upsample", "sub_mean", "body", "add_mean", "regressor")
PICTURE, SHIFTED, STREAM, OTHER = 1, 2, 3, 4  # buffers, after INPUT

Named = tuple[object, str]  # a layer and its path


def matches(model: Network) -> bool:
    if has_parts(model, LAYOUTS[0]):
        return not any(isinstance(getattr(model, name, None), nn.Module) for name in ("head", "tail"))
    return has_parts(model, LAYOUTS[1]) or [name for name, _ in model.named_children()] == ["features"]


def convert(model: Network) -> PatchProgram:
    pairs, closing = _pairs(model)
    first = expect_conv(*pairs[0][0], kernel=3)
    colors, channels = first.in_channels, first.out_channels
    layers = [_layer(*pair, colors if i == 0 else channels, channels) for i, pair in enumerate(pairs)]
    last = expect_conv(*closing, kernel=3, in_channels=channels, out_channels=colors)
    sub_mean, add_mean = (
        expect_conv(getattr(model, name), name, kernel=1, in_channels=colors, out_channels=colors)
        if hasattr(model, name)
        else None
        for name in ("sub_mean", "add_mean")
    )
    scale = expect_bicubic(model.upsample, "upsample") if hasattr(model, "upsample") else _scale(model, first, colors)
    exit_step, interval, exit_threshold = exits(model, channels, len(layers) - 1, STREAM)
    source, shift = PICTURE, list[Step]()
    if sub_mean is not None and add_mean is not None:
        source = SHIFTED
        shift = [conv_step(sub_mean, PICTURE, SHIFTED), conv_step(add_mean, SHIFTED, PICTURE)]
    head, stages = chain(layers, interval, exit_step, source, STREAM, OTHER)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors, scale), Buffer(colors, scale), *[Buffer(channels, scale)] * 2),
        head=(Upsample(INPUT, PICTURE, Interpolation.BICUBIC), *shift, head),
        stages=stages,
        tail=(_reconstruct(last, add_mean),),
        exit_threshold=exit_threshold,
    )


def _pairs(model: Network) -> tuple[list[tuple[Named, Named]], Named]:
    """The convolutions, each with the activation after it, and the last convolution."""
    if hasattr(model, "features"):
        return _flat(expect_sequence(model.features, "features"), "features")
    if hasattr(model, "residual_layer"):
        expect_only_children(model, "", ("input", "relu", "residual_layer", "output"))
        pairs: list[tuple[Named, Named]] = [((model.input, "input"), (getattr(model, "relu", None), "relu"))]
        for i, block in enumerate(expect_sequence(model.residual_layer, "residual_layer")):
            path = f"residual_layer.{i}"
            expect_only_children(block, f"{path}.", ("conv", "relu"))
            conv, act = ((getattr(block, name, None), f"{path}.{name}") for name in ("conv", "relu"))
            pairs.append((conv, act))
        return pairs, (model.output, "output")
    expect_only_children(model, "", PARTS)
    entries = expect_sequence(model.body, "body")
    if entries and isinstance(entries[0], nn.Conv2d):
        return _flat(entries, "body")
    if len(entries) < 3:
        raise refuse("body", "at least 3 entries", len(entries))
    named = [expect_sequence(entry, f"body.{i}", 2) for i, entry in enumerate(entries[:-1])]
    path = f"body.{len(named)}"
    (closing,) = expect_sequence(entries[-1], path, 1)
    pairs = [((conv, f"body.{i}.0"), (act, f"body.{i}.1")) for i, (conv, act) in enumerate(named)]
    return pairs, (closing, f"{path}.0")


def _flat(layers: Sequence[nn.Module], path: str) -> tuple[list[tuple[Named, Named]], Named]:
    if len(layers) < 5 or len(layers) % 2 == 0:
        raise refuse(path, "pairs of conv and activation, at least 2, and a conv", f"{len(layers)} layers")
    named: list[Named] = [(layer, f"{path}.{i}") for i, layer in enumerate(layers)]
    return list(zip(named[:-1:2], named[1::2], strict=True)), named[-1]


def _layer(conv: Named, act: Named, in_channels: int, channels: int) -> Layer:
    found = expect_conv(*conv, kernel=3, in_channels=in_channels, out_channels=channels)
    return Layer(found.weight, found.bias, *expect_activation(*act, channels))


def _scale(model: nn.Module, first: nn.Conv2d, colors: int) -> int:
    """The factor by which pixels are upsampled before the first convolution."""
    seen = entering(model, first, probe_patch(first.weight, colors))
    return 1 if seen is None else max(1, seen.shape[-1] // SIDE)


def _reconstruct(closing: nn.Conv2d, add_mean: nn.Conv2d | None) -> Reconstruct:
    """``add_mean(x + closing(features))``. The head has made add_mean(x), so its matrix goes into `closing`."""
    if add_mean is None:
        return Reconstruct(STREAM, one_kernel(closing.weight, closing.bias), upscale=1, add=PICTURE)
    matrix = add_mean.weight.detach().double()[:, :, 0, 0]
    weight = (matrix @ closing.weight.detach().double().flatten(1)).view_as(closing.weight)
    bias = None if closing.bias is None else matrix @ closing.bias.detach().double()
    return Reconstruct(STREAM, one_kernel(weight, bias), upscale=1, add=PICTURE)
