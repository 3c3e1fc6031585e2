"""ECBSR (Zhang et al. 2021) in the layouts of the APE authors, of BasicSR and of its own authors.

APE authors          head [ECB], body [ECB, ..., linear ECB to C * s * s], tail [PixelShuffle], upsample
                     (nn.Upsample, bicubic, added to the picture), regressor as in EDSR
BasicSR, own         backbone [ECB, ..., linear ECB to C * s * s], upsampler PixelShuffle; the input,
                     upsampled to the nearest pixel, is added to the picture
its authors' PlainSR  the same with plain convolutions: a block has only conv3x3 and act

ECB                  conv3x3; conv1x1_3x3 (k0, b0, k1, b1); conv1x1_sbx, conv1x1_sby and conv1x1_lpl (k0, b0,
                     scale, mask, bias); with_idt; act, absent where linear. Folds to one 3x3 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ape_kernels.adapters.chain import Layer, expect_activation, expect_bicubic, expect_shuffle, shuffled_chain
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_only_children,
    expect_sequence,
    has_parts,
    refuse,
)
from ape_kernels.program import Activation, Interpolation, PatchProgram

LAYOUTS = (("head", "body", "tail", "upsample"), ("backbone", "upsampler"))
EDGES = ("conv1x1_sbx", "conv1x1_sby", "conv1x1_lpl")
BRANCHES = ("conv3x3", "conv1x1_3x3", *EDGES)


def matches(model: nn.Module) -> bool:
    return has_parts(model, ("head.0.conv3x3", *LAYOUTS[0])) or has_parts(model, LAYOUTS[1])


def convert(model: Network) -> PatchProgram:
    if isinstance(getattr(model, "backbone", None), nn.Module):
        expect_only_children(model, "", ("backbone", "upsampler"))
        ecbs = _paths("backbone", expect_sequence(model.backbone, "backbone"))
        scale, interpolation = expect_shuffle(model.upsampler, "upsampler"), Interpolation.NEAREST
    else:
        expect_only_children(model, "", ("head", "body", "tail", "upsample", "regressor"))
        ecbs = _paths("head", expect_sequence(model.head, "head", 1))
        ecbs |= _paths("body", expect_sequence(model.body, "body"))
        (shuffle,) = expect_sequence(model.tail, "tail", 1)
        scale, interpolation = expect_shuffle(shuffle, "tail.0"), Interpolation.BICUBIC
        if expect_bicubic(model.upsample, "upsample") != scale:
            raise refuse("upsample", f"scale_factor {scale}", model.upsample.scale_factor)
    if len(ecbs) < 3:
        raise refuse(
            "backbone" if hasattr(model, "backbone") else "body", "ECBs before the last one", f"{len(ecbs)} in all"
        )
    *layers, closing = [_layer(ecb, path) for path, ecb in ecbs.items()]
    channels, colors = layers[0].weight.shape[:2]
    for path, layer in zip(ecbs, (*layers, closing), strict=True):
        expected = (colors if layer is layers[0] else channels, colors * scale**2 if layer is closing else channels)
        out_channels, in_channels = layer.weight.shape[:2]
        if (in_channels, out_channels) != expected:
            raise refuse(path, f"{expected[0]} channels to {expected[1]}", f"{in_channels} to {out_channels}")
    if closing.activation is not Activation.NONE:
        path, ecb = list(ecbs.items())[-1]
        raise refuse(f"{path}.act", "no activation", ecb.act)
    return shuffled_chain(model, layers, closing, scale, interpolation)


def _paths(name: str, ecbs: list[nn.Module]) -> dict[str, nn.Module]:
    return {f"{name}.{i}": ecb for i, ecb in enumerate(ecbs)}


def _layer(ecb: nn.Module, path: str) -> Layer:
    if not hasattr(ecb, "conv3x3"):
        raise refuse(path, f"an ECB ({', '.join(BRANCHES)})", ecb)
    if not any(hasattr(ecb, name) for name in BRANCHES[1:]):
        return _plain_layer(ecb, path)
    expect_only_children(ecb, f"{path}.", (*BRANCHES, "act"))
    weight, bias = fold_ecb(ecb, path)
    if getattr(ecb, "act", None) is None:
        return Layer(weight, bias)
    return Layer(weight, bias, *expect_activation(ecb.act, f"{path}.act", len(weight)))


def _plain_layer(block: Network, path: str) -> Layer:
    expect_only_children(block, f"{path}.", ("conv3x3", "act"))
    conv = expect_conv(block.conv3x3, f"{path}.conv3x3", kernel=3)
    if getattr(block, "act", None) is None:
        return Layer(conv.weight, conv.bias)
    return Layer(conv.weight, conv.bias, *expect_activation(block.act, f"{path}.act", conv.out_channels))


def fold_ecb(ecb: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """The one 3x3 convolution that an ECB's branches add up to: ``[C_out, C_in, 3, 3]`` and ``[C_out]``, float64.

    A branch pads the result of its 1x1 convolution with the bias of that convolution. A convolution of the zero-padded
    input gives the same there, so the fold is exact, borders included. path: names the ECB in errors.

    Raises NotRecognised for a branch whose parameters are not an ECB's.
    """
    conv = expect_conv(getattr(ecb, "conv3x3", None), f"{path}.conv3x3", kernel=3)
    out_channels, in_channels = conv.weight.shape[:2]
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(out_channels) if conv.bias is None else conv.bias.detach().double()
    k0, b0, k1, b1 = _branch(ecb, f"{path}.conv1x1_3x3", in_channels, k1=(out_channels, None, 3, 3), b1=(out_channels,))
    weight = weight + torch.einsum("omyx,mi->oiyx", k1, k0[:, :, 0, 0])
    bias = bias + b1 + k1.sum(dim=(2, 3)) @ b0
    per_channel = dict(scale=(out_channels, 1, 1, 1), mask=(out_channels, 1, 3, 3), bias=(out_channels,))
    for name in EDGES:
        k0, b0, strength, mask, own_bias = _branch(ecb, f"{path}.{name}", in_channels, **per_channel)
        weight = weight + strength * mask * k0
        bias = bias + own_bias + (strength * mask).sum(dim=(1, 2, 3)) * b0
    if getattr(ecb, "with_idt", False):
        if in_channels != out_channels:
            raise refuse(f"{path}.with_idt", f"False from {in_channels} channels to {out_channels}", ecb.with_idt)
        weight[:, :, 1, 1] += torch.eye(in_channels, dtype=weight.dtype, device=weight.device)
    return weight, bias


def _branch(ecb: Network, path: str, in_channels: int, **shapes: tuple[int | None, ...]) -> list[Tensor]:
    """A branch's 1x1 convolution (k0 and b0) and the tensors named in `shapes`, in float64. Shape None: that of b0."""
    branch = getattr(ecb, path.rpartition(".")[2], None)
    names = ("k0", "b0", *shapes)
    if not isinstance(branch, nn.Module) or set(branch.state_dict()) != set(names):
        got = branch if not isinstance(branch, nn.Module) else ", ".join(branch.state_dict()) or "none"
        raise refuse(path, f"a branch with the parameters {', '.join(names)}", got)
    middle = shapes.get("bias", (len(branch.state_dict()["b0"]),))[0]
    shapes = dict(k0=(middle, in_channels, 1, 1), b0=(middle,)) | shapes
    for name in names:
        expected = tuple(middle if size is None else size for size in shapes[name])
        shape = tuple(getattr(branch, name).shape)
        if shape != expected:
            raise refuse(f"{path}.{name}", f"the shape {list(expected)}", list(shape))
    return [getattr(branch, name).detach().double() for name in names]
