"""RCAN (Zhang et al. 2018) in the layout of EDSR-PyTorch, of the APE authors and of spandrel, exits between groups.

The frame is EDSR's (`convert_frame`). An entry of the body is a residual group:

group     body = [block, ..., block, conv 3x3], skip
block     body = [conv, ReLU, conv, attention], skip; it may have a res_scale, which its forward ignores
attention avg_pool = AdaptiveAvgPool2d(1), conv_du = [conv 1x1, ReLU, conv 1x1, Sigmoid]

The RCAN of spandrel takes pixels from 0 to 1 and has a downscale_factor. Its forward multiplies by rgb_range, and
first folds squares of downscale_factor pixels into channels.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ape_kernels.adapters.recognise import (
    Network,
    expect_number,
    expect_only_children,
    expect_sequence,
    expect_whole,
    refuse,
)
from ape_kernels.adapters.residual import (
    attention_block,
    attention_group,
    convert_frame,
    expect_chain,
    has_frame,
)
from ape_kernels.program import PatchProgram, Step

LAYOUTS = (("head", "body", "tail"),)


def matches(model: nn.Module) -> bool:
    return has_frame(model) and any(hasattr(block, "body") for group in _body(model) for block in _body(group))


def convert(model: nn.Module) -> PatchProgram:
    if not hasattr(model, "downscale_factor"):
        return convert_frame(model, _group)
    rgb_range = expect_number(getattr(model, "rgb_range", None), "rgb_range")
    return convert_frame(model, _group, rgb_range, expect_whole(model.downscale_factor, "downscale_factor"))


def _body(module: nn.Module) -> Iterable[nn.Module]:
    body = getattr(module, "body", None)
    return body.children() if isinstance(body, nn.Module) else ()


def _group(group: nn.Module, path: str, channels: int, src: int) -> tuple[Step, ...]:
    if not hasattr(group, "body"):
        raise refuse(path, "a residual group with .body = [block, ..., conv]", group)
    expect_only_children(group, f"{path}.", ("body",))
    blocks, closing = expect_chain(group.body, f"{path}.body", channels)
    return attention_group(blocks, _block, f"{path}.body", closing, channels, src)


def _block(block: Network, path: str, channels: int, src: int) -> tuple[Step, ...]:
    if not hasattr(block, "body"):
        raise refuse(path, "a block with .body = [conv, ReLU, conv, attention]", block)
    expect_only_children(block, f"{path}.", ("body",))
    scale = expect_number(getattr(block, "res_scale", 1), f"{path}.res_scale")
    if scale != 1:
        raise refuse(f"{path}.res_scale", "1", scale)
    *convs, attention = expect_sequence(block.body, f"{path}.body", 4)
    path = f"{path}.body"
    if not (hasattr(attention, "avg_pool") and hasattr(attention, "conv_du")):
        raise refuse(f"{path}.3", "a channel attention with avg_pool and conv_du", attention)
    expect_only_children(attention, f"{path}.3.", ("avg_pool", "conv_du"))
    gate = expect_sequence(attention.conv_du, f"{path}.3.conv_du", 4)
    paths = (*(f"{path}.{i}" for i in range(3)), f"{path}.3.avg_pool", *(f"{path}.3.conv_du.{i}" for i in range(4)))
    return attention_block((*convs, attention.avg_pool, *gate), paths, channels, src, scale)
