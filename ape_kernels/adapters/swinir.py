"""SwinIR, in the layout of the APE authors and of BasicSR.

img_range, mean        a number and a tensor [1, 3, 1, 1]: x becomes (x - mean) * img_range, and back at the end
conv_first             conv 3x3
patch_embed            norm or none
layers                 [group, ...]; group: residual_group.blocks, conv, patch_embed, patch_unembed
norm, conv_after_body  LayerNorm; conv 3x3, or conv 3x3, conv 1x1, conv 3x3 with LeakyReLUs between; the global skip
regressor              [AdaptiveAvgPool1d(1), Flatten, Linear(C, 1), Tanh], with exit_interval; or none

and, by upsampler,

pixelshuffle           conv_before_upsample [conv, LeakyReLU], upsample [conv, PixelShuffle, ...], conv_last
pixelshuffledirect     upsample [conv, PixelShuffle]
nearest+conv           conv_before_upsample, conv_up1, ... (each after nearest upsampling), conv_hr, conv_last
none                   conv_last, its output added to x

start_unshuffle        side of the squares of pixels folded into channels before conv_first (spandrel); else 1 or absent

A group runs as it is, as one `Module` step, which only the torch backend runs. Attention takes whole windows. A patch
is therefore first reflected past its bottom and right to a multiple of them, and its picture is cut at the end.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

from ape_kernels.adapters.parts import (
    Activated,
    affine,
    collapsed,
    conv_step,
    exits,
    expect_folded,
    expect_leaky_relu,
    expect_upsampler,
    leaky_conv_step,
    nearest_tail,
    normalisation,
    one_kernel,
    stages,
)
from ape_kernels.adapters.recognise import (
    Network,
    expect_conv,
    expect_only_children,
    expect_sequence,
    expect_whole,
    has_parts,
    refuse,
)
from ape_kernels.collapse import CollapsedTail
from ape_kernels.folding import reflect_to_multiple
from ape_kernels.program import INPUT, Buffer, Module, PatchProgram, Reconstruct, Step

LAYOUTS = (("conv_first", "layers", "norm", "conv_after_body"),)
PARTS = ("conv_first", "patch_embed", "patch_unembed", "pos_drop", "layers", "norm", "conv_after_body", "regressor")
SHIFTED, HEAD, STREAM, NORMED = 1, 2, 3, 4  # buffers, after INPUT; SHIFTED and the later ones have whole windows
TAIL = NORMED + 1  # the first buffer of the tail


class ToWindows(nn.Module):
    """``(x - mean) * img_range`` of a patch that is reflected to a multiple of the windows."""

    def __init__(self, multiple: int, img_range: float, mean: Tensor, device: torch.device) -> None:
        super().__init__()
        self.multiple, self.img_range = multiple, img_range
        self.mean = nn.Parameter(mean.to(device, torch.float32)[:, None, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return (reflect_to_multiple(x, self.multiple) - self.mean) * self.img_range


class _OnTokens(nn.Module):
    """A module over tokens ``[N, h * w, C]``, run on a feature map ``[N, C, h, w]``.

    Holds a copy of the module. The copy shares its weights, and stays in evaluation mode whatever the model does.
    """

    def __init__(self, module: nn.Module, takes_size: bool) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.module = copy.deepcopy(module, shared).eval()
        self.takes_size = takes_size

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        out = self.module(tokens, size) if self.takes_size else self.module(tokens)
        return out.transpose(1, 2).unflatten(2, size)


def matches(model: nn.Module) -> bool:
    return has_parts(model, LAYOUTS[0])


def convert(model: Network) -> PatchProgram:
    if hasattr(model, "absolute_pos_embed"):
        raise refuse("absolute_pos_embed", "none: it ties the network to one image size", "a position embedding")
    factor = expect_whole(getattr(model, "start_unshuffle", 1), "start_unshuffle")
    head = expect_folded(model.conv_first, "conv_first", factor)
    channels, colors = head.out_channels, head.in_channels // factor**2
    img_range, mean = normalisation(model, colors)
    embed, first = _embed(model, channels)
    layers = model.layers
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise refuse("layers", "an nn.ModuleList of residual groups", layers)
    groups = [[_group(layer, f"layers.{i}", first if i == 0 else STREAM)] for i, layer in enumerate(layers)]
    exit_step, interval, exit_threshold = exits(model, channels, len(layers), STREAM, nn.AdaptiveAvgPool1d)
    tail = Tail(model, PARTS, channels, colors, img_range, mean)
    windows = math.lcm(*(block.window_size for layer in model.layers for block in layer.residual_group.blocks))
    prepare = ToWindows(windows, img_range, mean.repeat_interleave(factor**2), head.weight.device)
    folded = Buffer(head.in_channels)
    return PatchProgram(
        buffers=(folded, folded, *[Buffer(channels)] * (NORMED - SHIFTED), *tail.buffers),
        head=(Module(INPUT, SHIFTED, prepare), conv_step(head, SHIFTED, HEAD), *embed),
        stages=stages(groups, interval, exit_step, first=first, stream=STREAM),
        tail=(Module(STREAM, NORMED, _norm(model.norm, "norm", channels)), *tail.steps),
        exit_threshold=exit_threshold,
        fold=factor,
        multiple_of=windows * factor,
    )


def _embed(model: nn.Module, channels: int) -> tuple[tuple[Step, ...], int]:
    """The step that normalises before the first group, if there is one, and the buffer that the group reads."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, nn.Module):
        raise refuse("patch_embed", "a module with norm or without", embed)
    expect_only_children(embed, "patch_embed.", ("norm",))
    if getattr(embed, "norm", None) is None:
        return (), HEAD
    return (Module(HEAD, STREAM, _norm(embed.norm, "patch_embed.norm", channels)),), STREAM


def _norm(norm: object, path: str, channels: int) -> _OnTokens:
    if not isinstance(norm, nn.LayerNorm) or norm.normalized_shape != (channels,):
        raise refuse(path, f"an nn.LayerNorm({channels})", norm)
    return _OnTokens(norm, takes_size=False)


def _group(group: nn.Module, path: str, src: int) -> Module:
    """A group as one step. It must be made of the parts that a group of SwinIR has."""
    expect_only_children(group, f"{path}.", ("residual_group", "conv", "patch_embed", "patch_unembed"))
    inner: Network = getattr(group, "residual_group", None)
    blocks = getattr(inner, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise refuse(path, "a residual group with .residual_group.blocks", group)
    expect_only_children(inner, f"{path}.residual_group.", ("blocks",))
    mixing = 0
    for i, block in enumerate(blocks):
        mixing += _attention_flops(block, f"{path}.residual_group.blocks.{i}")
    multiplied = sum(m.weight.numel() for m in group.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return Module(src, STREAM, _OnTokens(group, takes_size=True), 2 * multiplied + mixing)


def _attention_flops(block: nn.Module, path: str) -> int:
    """FLOPs per pixel of a block's attention beside its linear layers: scores and mixture, both over one window."""
    expect_only_children(block, f"{path}.", ("norm1", "attn", "drop_path", "norm2", "mlp"))
    window = getattr(block, "window_size", None)
    if not isinstance(window, int):
        raise refuse(f"{path}.window_size", "a whole number", repr(window))
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.Module):
        raise refuse(f"{path}.attn", "window attention", attention)
    expect_only_children(attention, f"{path}.attn.", ("qkv", "attn_drop", "proj", "proj_drop", "softmax"))
    if not isinstance(getattr(attention, "relative_position_bias_table", None), nn.Parameter):
        raise refuse(f"{path}.attn", "window attention with .relative_position_bias_table", attention)
    projection = getattr(attention, "proj", None)
    if not isinstance(projection, nn.Linear):
        raise refuse(f"{path}.attn.proj", "an nn.Linear", projection)
    return 4 * window**2 * projection.in_features


class Tail:
    """Steps from the normalised stream in NORMED to the picture, and the buffers that they take from TAIL on.

    parts: names of the submodules that stand before the tail.
    """

    def __init__(
        self, model: Network, parts: tuple[str, ...], channels: int, colors: int, img_range: float, mean: Tensor
    ) -> None:
        self.model, self.parts, self.channels, self.colors = model, parts, channels, colors
        self.range, self.mean = img_range, mean
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = self._after_body()
        if hasattr(model, "conv_up1"):
            self._nearest()
        elif hasattr(model, "conv_before_upsample"):
            self._pixel_shuffle()
        elif hasattr(model, "upsample"):
            self._direct()
        elif getattr(model, "start_unshuffle", 1) == 1:
            self._residual()
        else:
            raise refuse(
                "start_unshuffle", "1 without an upsampler: folded pixels are no picture", model.start_unshuffle
            )

    def _after_body(self) -> list[Step]:
        """``conv_after_body + skip`` from NORMED to STREAM."""
        after, path, channels = self.model.conv_after_body, "conv_after_body", self.channels
        if not isinstance(after, nn.Sequential):
            conv = expect_conv(after, path, kernel=3, in_channels=channels, out_channels=channels)
            return [conv_step(conv, NORMED, STREAM, add=HEAD)]
        first, act1, second, act2, third = expect_sequence(after, path, 5)
        first = expect_conv(first, f"{path}.0", kernel=3, in_channels=channels)
        narrow = first.out_channels
        second = expect_conv(second, f"{path}.2", kernel=1, in_channels=narrow, out_channels=narrow)
        third = expect_conv(third, f"{path}.4", kernel=3, in_channels=narrow, out_channels=channels)
        self.buffers += [Buffer(narrow)] * 2
        return [
            leaky_conv_step(first, NORMED, TAIL, expect_leaky_relu(act1, f"{path}.1")),
            leaky_conv_step(second, TAIL, TAIL + 1, expect_leaky_relu(act2, f"{path}.3")),
            conv_step(third, TAIL + 1, STREAM, add=HEAD),
        ]

    def _only(self, *names: str) -> None:
        expect_only_children(self.model, "", (*self.parts, *names))

    def _before_upsample(self) -> tuple[int, int]:
        """The buffer that conv_before_upsample writes, and its channels."""
        conv, act = expect_sequence(self.model.conv_before_upsample, "conv_before_upsample", 2)
        conv = expect_conv(conv, "conv_before_upsample.0", kernel=3, in_channels=self.channels)
        slope = expect_leaky_relu(act, "conv_before_upsample.1")
        features = TAIL + len(self.buffers)
        self.buffers.append(Buffer(conv.out_channels))
        self.steps.append(leaky_conv_step(conv, STREAM, features, slope))
        return features, conv.out_channels

    def _last(self, channels: int) -> nn.Conv2d:
        last = getattr(self.model, "conv_last", None)
        return expect_conv(last, "conv_last", kernel=3, in_channels=channels, out_channels=self.colors)

    def _kernel(self, conv: nn.Conv2d, mean: Tensor) -> CollapsedTail:
        """``conv / img_range + mean``. mean: ``[1]``, or one entry per output channel."""
        weight, mean = conv.weight.detach().double(), mean.to(conv.weight.device)
        bias = mean.expand(len(weight)) if conv.bias is None else conv.bias.detach().double() / self.range + mean
        return one_kernel(weight / self.range, bias)

    def _pixel_shuffle(self) -> None:
        self._only("conv_before_upsample", "upsample", "conv_last")
        features, width = self._before_upsample()
        upscale = expect_upsampler(getattr(self.model, "upsample", None), "upsample", width)
        tail = (self.model.upsample, self._last(width), affine(1 / self.range, self.mean))
        self.steps.append(Reconstruct(features, collapsed(tail), upscale))

    def _direct(self) -> None:
        self._only("upsample")
        conv, shuffle = expect_sequence(self.model.upsample, "upsample", 2)
        if not isinstance(shuffle, nn.PixelShuffle):
            raise refuse("upsample.1", "an nn.PixelShuffle", shuffle)
        upscale = shuffle.upscale_factor
        phases = self.colors * upscale**2
        conv = expect_conv(conv, "upsample.0", kernel=3, in_channels=self.channels, out_channels=phases)
        kernel = self._kernel(conv, self.mean.repeat_interleave(upscale**2))
        self.steps.append(Reconstruct(STREAM, kernel, upscale))

    def _nearest(self) -> None:
        names = [f"conv_up{i}" for i in itertools.takewhile(lambda i: hasattr(self.model, f"conv_up{i}"), range(1, 9))]
        self._only("conv_before_upsample", *names, "conv_hr", "conv_last", "lrelu")
        features, width = self._before_upsample()
        slope = expect_leaky_relu(getattr(self.model, "lrelu", None), "lrelu")
        *doublings, high = (
            expect_conv(getattr(self.model, name, None), name, kernel=3, in_channels=width, out_channels=width)
            for name in (*names, "conv_hr")
        )
        steps, buffers = nearest_tail(
            [Activated(conv, slope, 2) for conv in doublings],
            Activated(high, slope),
            self._kernel(self._last(width), self.mean),
            src=features,
            spare=features,
            free=TAIL + len(self.buffers),
            channels=width,
        )
        self.steps += steps
        self.buffers += buffers

    def _residual(self) -> None:
        """``x + conv_last / img_range``, with x made from SHIFTED again."""
        self._only("conv_last")
        kernel = self._kernel(self._last(self.channels), torch.zeros(1, dtype=torch.float64, device="cpu"))
        picture = TAIL + len(self.buffers)
        self.buffers.append(Buffer(self.colors))
        self.steps.append(conv_step(affine(1 / self.range, self.mean), SHIFTED, picture))
        self.steps.append(Reconstruct(STREAM, kernel, 1, add=picture))
