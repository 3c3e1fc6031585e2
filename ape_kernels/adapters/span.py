"""SPAN (Wan et al. 2024), in the layout of its authors and of spandrel.

img_range, mean          as in SwinIR; in spandrel is_norm is false where the forward leaves them out
conv_1, conv_2           re-parameterised convolutions
block_1 to block_6       c1_r, c2_r, c3_r: re-parameterised convolutions; act1: SiLU
                         y3 = c3(act1(c2(act1(c1(x))))); the block gives (y3 + x) * (sigmoid(y3) - 0.5)
conv_cat                 conv 1x1 over conv_1, conv_2 of block_6, block_1 and act1(c1) of block_6
upsampler                [conv 3x3, PixelShuffle]

A re-parameterised convolution has sk (conv 1x1) and conv [1x1, 3x3, 1x1], which add up to one 3x3 convolution. Its
eval_conv holds the sum in evaluation mode. Here it is made anew from the others. SiLU and the gate of a block are
`Module` steps, which only the torch backend runs.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ape_kernels.adapters.parts import affine, conv_step, exits, normalisation, one_kernel, stages
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_only_children,
    expect_sequence,
    has_parts,
    refuse,
)
from ape_kernels.program import INPUT, Buffer, Conv, Module, PatchProgram, Reconstruct, Step

BLOCKS = tuple(f"block_{i}" for i in range(1, 7))
PARTS = ("conv_1", *BLOCKS, "conv_cat", "conv_2", "upsampler")
LAYOUTS = (PARTS,)
# buffers, after INPUT: the stream, what conv_cat reads, and those inside a block
SHIFTED, HEAD, STREAM, FIRST, LATE, HIDDEN, ACTIVE, PAIR = range(1, 9)


class _Gate(nn.Module):
    """``(y + x) * (sigmoid(y) - 0.5)``. Takes y and x, concatenated to ``[N, 2 C, h, w]``."""

    def forward(self, pair: Tensor) -> Tensor:
        """See the class."""
        y, x = pair.chunk(2, dim=1)
        return (y + x) * (torch.sigmoid(y) - 0.5)


def matches(model: nn.Module) -> bool:
    return has_parts(model, PARTS)


def convert(model: Network) -> PatchProgram:
    expect_only_children(model, "", PARTS)
    head = fold_span_conv(model.conv_1, "conv_1")
    channels, colors = head[0].shape[:2]
    normed = getattr(model, "is_norm", True)
    no_mean = torch.zeros(colors, dtype=torch.float64, device="cpu")
    img_range, mean = normalisation(model, colors) if normed else (1.0, no_mean)
    cat = expect_conv(model.conv_cat, "conv_cat", kernel=1, in_channels=4 * channels, out_channels=channels)
    conv, shuffle = expect_sequence(model.upsampler, "upsampler", 2)
    if not isinstance(shuffle, nn.PixelShuffle):
        raise refuse("upsampler.1", "an nn.PixelShuffle", shuffle)
    scale = shuffle.upscale_factor
    conv = expect_conv(conv, "upsampler.0", kernel=3, in_channels=channels, out_channels=colors * scale**2)
    blocks = [_block(model, name, HEAD if name == BLOCKS[0] else STREAM) for name in BLOCKS]
    keep = Conv(STREAM, FIRST, torch.eye(channels, dtype=torch.float32, device="cpu")[:, :, None, None])
    closing = (  # in the stage, because only one buffer leaves it
        Conv(STREAM, HIDDEN, *fold_span_conv(model.conv_2, "conv_2")),
        conv_step(cat, (HEAD, HIDDEN, FIRST, LATE), ACTIVE),
    )
    steps = (*blocks[0], keep, *itertools.chain(*blocks[1:]), *closing)
    exit_step, interval, exit_threshold = exits(model, channels, 1, ACTIVE)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors), *[Buffer(channels)] * (ACTIVE - SHIFTED), Buffer(2 * channels)),
        head=(conv_step(affine(img_range, -img_range * mean), INPUT, SHIFTED), Conv(SHIFTED, HEAD, *head)),
        stages=stages([steps], interval, exit_step, first=HEAD, stream=ACTIVE),
        tail=(Reconstruct(ACTIVE, one_kernel(conv.weight, conv.bias), scale),),
        exit_threshold=exit_threshold,
    )


def _block(model: Network, path: str, src: int) -> list[Step]:
    """A block from `src` to STREAM. It leaves act1(c1) in LATE; conv_cat reads that of the last block."""
    block = getattr(model, path)
    expect_only_children(block, f"{path}.", ("c1_r", "c2_r", "c3_r", "act1", "act2"))
    if not isinstance(block.act1, nn.SiLU):
        raise refuse(f"{path}.act1", "an nn.SiLU", block.act1)
    first, second, third = (
        fold_span_conv(getattr(block, name, None), f"{path}.{name}") for name in ("c1_r", "c2_r", "c3_r")
    )
    channels = len(first[0])
    both = torch.eye(2 * channels, dtype=torch.float32, device="cpu")[:, :, None, None]
    return [
        Conv(src, HIDDEN, *first),
        Module(HIDDEN, LATE, nn.SiLU()),
        Conv(LATE, HIDDEN, *second),
        Module(HIDDEN, ACTIVE, nn.SiLU()),
        Conv(ACTIVE, HIDDEN, *third),
        Conv((HIDDEN, src), PAIR, both),
        Module(PAIR, STREAM, _Gate()),
    ]


def fold_span_conv(module: object, path: str) -> tuple[Tensor, Tensor]:
    """The 3x3 convolution that a re-parameterised one adds up to: ``[C_out, C_in, 3, 3]`` and ``[C_out]``, float64.

    Its branches see the input padded with zeros before their first 1x1 convolution, so the fold is exact at borders.
    """
    if not isinstance(module, nn.Module) or not has_parts(module, ("sk", "conv")):
        raise refuse(path, "a re-parameterised convolution with sk and conv", module)
    expect_only_children(module, f"{path}.", ("sk", "conv", "eval_conv"))
    if getattr(module, "has_relu", False):
        raise refuse(f"{path}.has_relu", "False", True)
    branch: Network = module
    sk = expect_conv(branch.sk, f"{path}.sk", kernel=1)
    narrow, wide, out = expect_sequence(branch.conv, f"{path}.conv", 3)
    narrow = expect_conv(narrow, f"{path}.conv.0", kernel=1, in_channels=sk.in_channels)
    out = expect_conv(out, f"{path}.conv.2", kernel=1, out_channels=sk.out_channels)
    shape = (out.in_channels, narrow.out_channels, 3, 3)
    if not isinstance(wide, nn.Conv2d) or tuple(wide.weight.shape) != shape or wide.padding != (0, 0):
        raise refuse(f"{path}.conv.1", f"an unpadded nn.Conv2d with weights {list(shape)}", wide)
    (w1, b1), (w2, b2), (w3, b3), (ws, bs) = (_exact(conv) for conv in (narrow, wide, out, sk))
    w1, w3 = w1[:, :, 0, 0], w3[:, :, 0, 0]
    weight = torch.einsum("om,mnyx,ni->oiyx", w3, w2, w1)
    weight[:, :, 1, 1] += ws[:, :, 0, 0]
    return weight, w3 @ (w2.sum(dim=(2, 3)) @ b1 + b2) + b3 + bs


def _exact(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    weight = conv.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
