"""EDSR and RCAN in BasicSR's layout, and mmagic's EDSRNet, without exits.

img_range, mean   a number and a tensor [1, 3, 1, 1]: x becomes (x - mean) * img_range, and back at the end
mean, std         mmagic's, both tensors: x becomes (x - mean) / std, and back at the end
conv_first        conv 3x3
body              [block, ...] or [group, ...]
conv_after_body   conv 3x3, then the global skip
upsample          [conv, PixelShuffle, ...]; mmagic's pairs have the conv as upsample_conv, and scale_factor
conv_last         conv 3x3

EDSR's block      conv1, relu, conv2, res_scale, skip
RCAN's group      residual_group = [block, ...], conv, skip
RCAN's block      rcab = [conv, ReLU, conv, attention], res_scale, skip
attention         attention = [AdaptiveAvgPool2d(1), conv 1x1, ReLU, conv 1x1, Sigmoid]
"""

from __future__ import annotations

from torch import nn

from ape_kernels.adapters.parts import affine, expect_per_color, expect_upsampler, normalisation, unpacked
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_number,
    expect_only_children,
    expect_sequence,
    has_parts,
    refuse,
)
from ape_kernels.adapters.residual import assemble, attention_block, attention_group, residual_block
from ape_kernels.program import PatchProgram, Step

PARTS = ("conv_first", "body", "conv_after_body", "upsample", "conv_last")
LAYOUTS = (PARTS,)


def matches(model: nn.Module) -> bool:
    return has_parts(model, PARTS)


def convert(model: Network) -> PatchProgram:
    expect_only_children(model, "", PARTS)
    head = expect_conv(model.conv_first, "conv_first", kernel=3)
    channels, colors = head.out_channels, head.in_channels
    if hasattr(model, "std") and not hasattr(model, "img_range"):
        mean, factor = expect_per_color(model, "mean", colors), 1 / expect_per_color(model, "std", colors)
    else:
        factor, mean = normalisation(model, colors)
    blocks = expect_sequence(model.body, "body")
    if not blocks:
        raise refuse("body", "residual blocks or groups", "none")
    closing = expect_conv(
        model.conv_after_body, "conv_after_body", kernel=3, in_channels=channels, out_channels=channels
    )
    upscale = expect_upsampler(model.upsample, "upsample", channels)
    last = expect_conv(model.conv_last, "conv_last", kernel=3, in_channels=channels, out_channels=colors)
    return assemble(
        model,
        shift=affine(factor, -factor * mean),
        head=head,
        blocks=blocks,
        recognise=_group if hasattr(blocks[0], "residual_group") else _residual_block,
        closing=closing,
        tail=(*unpacked(model.upsample, "upsample"), last, affine(1 / factor, mean)),
        upscale=upscale,
    )


def _residual_block(block: nn.Module, path: str, channels: int, src: int) -> tuple[Step, ...]:
    names = ("conv1", "relu", "conv2")
    if not all(hasattr(block, name) for name in names):
        raise refuse(path, "a residual block with conv1, relu and conv2", block)
    expect_only_children(block, f"{path}.", names)
    layers = [getattr(block, name) for name in names]
    return residual_block(layers, [f"{path}.{name}" for name in names], channels, src, _res_scale(block, path))


def _group(group: nn.Module, path: str, channels: int, src: int) -> tuple[Step, ...]:
    if not (hasattr(group, "residual_group") and hasattr(group, "conv")):
        raise refuse(path, "a residual group with residual_group and conv", group)
    expect_only_children(group, f"{path}.", ("residual_group", "conv"))
    closing = expect_conv(group.conv, f"{path}.conv", kernel=3, in_channels=channels, out_channels=channels)
    path = f"{path}.residual_group"
    blocks = expect_sequence(group.residual_group, path)
    if not blocks:
        raise refuse(path, "attention blocks", "none")
    return attention_group(blocks, _attention_block, path, closing, channels, src)


def _attention_block(block: nn.Module, path: str, channels: int, src: int) -> tuple[Step, ...]:
    if not hasattr(block, "rcab"):
        raise refuse(path, "a block with .rcab = [conv, ReLU, conv, attention]", block)
    expect_only_children(block, f"{path}.", ("rcab",))
    scale = _res_scale(block, path)
    path = f"{path}.rcab"
    *convs, attention = expect_sequence(block.rcab, path, 4)
    if not hasattr(attention, "attention"):
        raise refuse(f"{path}.3", "a channel attention with .attention", attention)
    expect_only_children(attention, f"{path}.3.", ("attention",))
    gate = expect_sequence(attention.attention, f"{path}.3.attention", 5)
    paths = (*(f"{path}.{i}" for i in range(3)), *(f"{path}.3.attention.{i}" for i in range(5)))
    return attention_block((*convs, *gate), paths, channels, src, scale)


def _res_scale(block: nn.Module, path: str) -> float:
    return expect_number(getattr(block, "res_scale", 1), f"{path}.res_scale")
