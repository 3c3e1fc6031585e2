"""HAT (Chen et al. 2023) and DAT (Chen et al. 2023), in the layout of their authors and of spandrel.

img_range, mean        as in SwinIR
conv_first             conv 3x3
forward_features       a method: from what conv_first gives to the deep features, of the same size
conv_after_body, ...   as in SwinIR, by upsampler

HAT's layers have residual_group.overlap_attn, and images are reflected to a multiple of its window_size. DAT has
before_RG and takes any size. The deep features are one `Module` step, which only the torch backend runs.
"""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn

from ape_kernels.adapters.parts import conv_step, exits, normalisation, stages
from ape_kernels.adapters.recognise import Network, expect_conv, expect_whole, has_parts, refuse
from ape_kernels.adapters.swinir import HEAD, NORMED, SHIFTED, Tail, ToWindows
from ape_kernels.program import INPUT, Buffer, Module, PatchProgram

LAYOUTS = (
    ("conv_first", "layers.0.residual_group.overlap_attn", "norm", "conv_after_body"),
    ("conv_first", "before_RG", "layers", "norm", "conv_after_body"),
)
PARTS = ("conv_first", "patch_embed", "patch_unembed", "pos_drop", "before_RG", "layers", "norm", "conv_after_body")


class _DeepFeatures(nn.Module):
    """The `forward_features` of a network. Holds a copy that shares the weights and stays in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same."""
        return cast(Network, self.model).forward_features(x)


def matches(model: nn.Module) -> bool:
    return any(has_parts(model, layout) for layout in LAYOUTS)


def convert(model: Network) -> PatchProgram:
    if not callable(getattr(model, "forward_features", None)):
        raise refuse("forward_features", "a method", "none")
    if hasattr(model, "absolute_pos_embed"):
        raise refuse("absolute_pos_embed", "none: it ties the network to one image size", "a position embedding")
    head = expect_conv(model.conv_first, "conv_first", kernel=3)
    channels, colors = head.out_channels, head.in_channels
    img_range, mean = normalisation(model, colors)
    window = expect_whole(model.window_size, "window_size") if has_parts(model, LAYOUTS[0]) else 1
    tail = Tail(model, PARTS, channels, colors, img_range, mean)
    exit_step, interval, exit_threshold = exits(model, channels, 1, NORMED)
    flops = sum(2 * m.weight.numel() for m in model.layers.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    features = Module(HEAD, NORMED, _DeepFeatures(model), flops)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors), *[Buffer(channels)] * (NORMED - SHIFTED), *tail.buffers),
        head=(
            Module(INPUT, SHIFTED, ToWindows(window, img_range, mean, head.weight.device)),
            conv_step(head, SHIFTED, HEAD),
        ),
        stages=stages([[features]], interval, exit_step, first=HEAD, stream=NORMED),
        tail=tuple(tail.steps),
        exit_threshold=exit_threshold,
        multiple_of=window,
    )
