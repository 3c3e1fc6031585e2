"""EDSR-shaped networks in the layout of EDSR-PyTorch and of the APE authors.

The frame is that of `convert_frame`. An entry of the body is a block with body = [conv, ReLU, conv], res_scale and a
skip.
"""

from __future__ import annotations

from torch import nn

from ape_kernels.adapters.recognise import expect_number, expect_only_children, expect_sequence, refuse
from ape_kernels.adapters.residual import convert_frame, has_frame, residual_block
from ape_kernels.program import PatchProgram, Step

LAYOUTS = (("head", "body", "tail"),)


def matches(model: nn.Module) -> bool:
    return has_frame(model)


def convert(model: nn.Module) -> PatchProgram:
    return convert_frame(model, _block)


def _block(block: nn.Module, path: str, channels: int, src: int) -> tuple[Step, ...]:
    if not hasattr(block, "body"):
        raise refuse(path, "a residual block with .body = [conv, ReLU, conv]", block)
    expect_only_children(block, f"{path}.", ("body",))
    layers = expect_sequence(block.body, f"{path}.body", 3)
    scale = expect_number(getattr(block, "res_scale", 1.0), f"{path}.res_scale")
    return residual_block(layers, [f"{path}.body.{i}" for i in range(3)], channels, src, scale)
