"""RRDBNet of ESRGAN, in four layouts.

the APE authors'   head [conv], body [RRDB, ..., RRDB, conv], tail (conv_up1, conv_up2, conv_hr, conv_last, lrelu),
                   regressor as for EDSR or none; the last block is always an exit
BasicSR's          conv_first, body [RRDB, ...], conv_body, conv_up1, conv_up2, conv_hr, conv_last, lrelu
ESRGAN's, KAIR's,  conv_first, RRDB_trunk [RRDB, ...], trunk_conv, upconv1, upconv2 (not at scale 2), HRconv,
BSRGAN's           conv_last, lrelu
the first ESRGAN's model [conv, shortcut around sub [RRDB, ..., RRDB, conv], (Upsample nearest, conv, LeakyReLU) once
                   per doubling, conv, LeakyReLU, conv]; it may have shuffle_factor, the side of folded squares

The scale is 4. It is 2 or 1 where squares of 2x2 or 4x4 pixels are folded into channels first: the first convolution
then reads 4 or 16 times the channels that the last one writes. An RRDB is rdb1, rdb2, rdb3 (or RDB1 ...), each with
conv1 to conv5 and LeakyReLUs between. Both residuals are scaled by 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ape_kernels.adapters.parts import (
    Activated,
    conv_step,
    exits,
    expect_folded,
    expect_leaky_relu,
    leaky_conv_step,
    nearest_tail,
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
from ape_kernels.program import INPUT, Buffer, Conv, PatchProgram, Step

LAYOUTS = (
    ("head", "body", "tail.conv_hr"),
    ("conv_first", "body", "conv_up1"),
    ("conv_first", "RRDB_trunk"),
    ("model.1.sub.0.RDB1",),
)
RESIDUAL_SCALE = 0.2
CONVS = 5  # of a dense block
HEAD, STREAM, FIRST, SECOND, GROWTH = 1, 2, 3, 4, 5  # buffers, after INPUT; GROWTH and the three after it


@dataclass(frozen=True)
class _Names:
    """What a layout calls the layers of the tail.

    doubling: the convolutions after nearest upsampling, with a place for their number.
    """

    doubling: str = "conv_up{}"
    high: str = "conv_hr"
    last: str = "conv_last"
    lrelu: str = "lrelu"


TRUNK = _Names(doubling="upconv{}", high="HRconv")


@dataclass(frozen=True)
class _Parts:
    """What all layouts have, and where it was found."""

    head: nn.Conv2d
    blocks: Sequence[tuple[nn.Module, str]]
    closing: nn.Conv2d
    doublings: Sequence[Activated]
    high: Activated
    last: nn.Conv2d
    fold: int = 1


def matches(model: nn.Module) -> bool:
    return any(has_parts(model, layout) for layout in LAYOUTS)


def _has_trunk(model: nn.Module) -> bool:
    return has_parts(model, ("conv_first", "RRDB_trunk"))


def convert(model: nn.Module) -> PatchProgram:
    if _is_first(model):
        parts = _first_layout(model)
    elif _has_trunk(model):
        parts = _flat_layout(model, "RRDB_trunk", "trunk_conv", TRUNK, 2 if hasattr(model, "upconv2") else 1)
    elif hasattr(model, "conv_first"):
        parts = _flat_layout(model, "body", "conv_body", _Names(), 2)
    else:
        parts = _authors_layout(model)
    channels = parts.head.out_channels
    if not parts.blocks:
        raise refuse("body", "residual-in-residual dense blocks", "none")
    growth, keep = _growth(*parts.blocks[0]), _identity(parts.head)
    steps = [_rrdb(*block, channels, growth, keep, HEAD if i == 0 else STREAM) for i, block in enumerate(parts.blocks)]
    exit_step, interval, exit_threshold = exits(model, channels, len(steps), STREAM)
    kernel = one_kernel(parts.last.weight, parts.last.bias)
    tail, tail_buffers = nearest_tail(
        parts.doublings, parts.high, kernel, src=FIRST, spare=SECOND, free=GROWTH + CONVS - 1, channels=channels
    )
    return PatchProgram(
        buffers=(
            Buffer(parts.head.in_channels),
            *[Buffer(channels)] * (SECOND - INPUT),
            *[Buffer(growth)] * (CONVS - 1),
            *tail_buffers,
        ),
        head=(conv_step(parts.head, INPUT, HEAD),),
        stages=stages(steps, interval, exit_step, first=HEAD, stream=STREAM, exit_at_end=True),
        tail=(conv_step(parts.closing, STREAM, FIRST, add=HEAD), *tail),
        exit_threshold=exit_threshold,
        fold=parts.fold,
        multiple_of=parts.fold,
    )


def _authors_layout(model: Network) -> _Parts:
    expect_only_children(model, "", ("head", "body", "tail", "regressor"))
    (head,) = expect_sequence(model.head, "head", 1)
    *blocks, closing = expect_sequence(model.body, "body")
    named = [(block, f"body.{i}") for i, block in enumerate(blocks)]
    doublings = sum(name.startswith("conv_up") for name, _ in model.tail.named_children())
    tail, made = _tail(model.tail, "tail.", _Names(), doublings, head)
    expect_only_children(model.tail, "tail.", made)
    return _parts((head, "head.0"), named, (closing, f"body.{len(blocks)}"), tail)


def _flat_layout(model: Network, body: str, closing: str, names: _Names, doublings: int) -> _Parts:
    """A layout in which all layers are attributes of the network. body, closing: its names of the blocks and of the
    convolution after them."""
    blocks = expect_sequence(getattr(model, body), body)
    tail, made = _tail(model, "", names, doublings, model.conv_first)
    expect_only_children(model, "", ("conv_first", body, closing, *made))
    named = [(block, f"{body}.{i}") for i, block in enumerate(blocks)]
    return _parts((model.conv_first, "conv_first"), named, (getattr(model, closing, None), closing), tail)


def _tail(
    tail: nn.Module, path: str, names: _Names, doublings: int, head: object
) -> tuple[tuple[list[Activated], Activated, nn.Conv2d], list[str]]:
    """The doublings, the convolution after them, the last one, and the names of all these layers."""
    channels = expect_conv(head, "conv_first", kernel=3).out_channels
    size = dict(kernel=3, in_channels=channels, out_channels=channels)
    slope = expect_leaky_relu(getattr(tail, names.lrelu, None), f"{path}{names.lrelu}")
    made = [*(names.doubling.format(i + 1) for i in range(doublings)), names.high]
    *ups, high = (Activated(expect_conv(getattr(tail, n, None), f"{path}{n}", **size), slope) for n in made)
    last = expect_conv(getattr(tail, names.last, None), f"{path}{names.last}", kernel=3, in_channels=channels)
    return ([replace(up, factor=2) for up in ups], high, last), [*made, names.last, names.lrelu]


def _parts(
    head: tuple[object, str],
    blocks: Sequence[tuple[nn.Module, str]],
    closing: tuple[object, str],
    tail: tuple[list[Activated], Activated, nn.Conv2d],
) -> _Parts:
    doublings, high, last = tail
    conv = expect_conv(*head, kernel=3)
    size = dict(kernel=3, in_channels=conv.out_channels, out_channels=conv.out_channels)
    return _Parts(conv, blocks, expect_conv(*closing, **size), doublings, high, last, _fold(conv, last))


def _fold(head: nn.Conv2d, last: nn.Conv2d) -> int:
    """The side of the squares of pixels that `head` reads as channels; `last` writes the channels of a picture."""
    factor = math.isqrt(max(1, head.in_channels // last.out_channels))
    return factor if factor**2 * last.out_channels == head.in_channels else 1


def _is_first(model: nn.Module) -> bool:
    return has_parts(model, LAYOUTS[-1])


def _first_layout(model: Network) -> _Parts:
    expect_only_children(model, "", ("model",))
    factor = expect_whole(getattr(model, "shuffle_factor", None) or 1, "shuffle_factor")
    head, body, *rest = expect_sequence(model.model, "model")
    head = expect_folded(head, "model.0", factor)
    size = dict(kernel=3, in_channels=head.out_channels, out_channels=head.out_channels)
    expect_only_children(body, "model.1.", ("sub",))
    *blocks, closing = expect_sequence(body.sub, "model.1.sub")
    if len(rest) < 3 or len(rest) % 3:
        raise refuse("model", "threes of Upsample, conv and LeakyReLU, then conv, LeakyReLU and conv", len(rest))
    doublings = []
    for i in range(2, 2 + len(rest) - 3, 3):
        upsample, conv, act = model.model[i], model.model[i + 1], model.model[i + 2]
        upscale = _nearest_factor(upsample, f"model.{i}")
        conv = expect_conv(conv, f"model.{i + 1}", **size)
        doublings.append(Activated(conv, expect_leaky_relu(act, f"model.{i + 2}"), upscale))
    high, act, last = rest[-3:]
    end = 2 + len(rest)
    return _Parts(
        head,
        [(block, f"model.1.sub.{i}") for i, block in enumerate(blocks)],
        expect_conv(closing, f"model.1.sub.{len(blocks)}", **size),
        doublings,
        Activated(expect_conv(high, f"model.{end - 3}", **size), expect_leaky_relu(act, f"model.{end - 2}")),
        expect_conv(last, f"model.{end - 1}", kernel=3, in_channels=head.out_channels),
        factor,
    )


def _nearest_factor(upsample: object, path: str) -> int:
    if not isinstance(upsample, nn.Upsample) or upsample.mode != "nearest":
        raise refuse(path, "an nn.Upsample of mode nearest", getattr(upsample, "mode", upsample))
    factor = upsample.scale_factor
    if not isinstance(factor, int | float) or factor != int(factor) or factor < 1:
        raise refuse(path, "a whole scale_factor", factor)
    return int(factor)


def _growth(block: nn.Module, path: str) -> int:
    """Features that each convolution of a dense block adds."""
    name = _dense_names(block, path)[0]
    conv, conv_path, _, _ = _dense_conv(getattr(block, name), 1, f"{path}.{name}")
    return expect_conv(conv, conv_path, kernel=3).out_channels


def _dense_names(block: nn.Module, path: str) -> tuple[str, ...]:
    for names in (("rdb1", "rdb2", "rdb3"), ("RDB1", "RDB2", "RDB3")):
        if all(isinstance(getattr(block, name, None), nn.Module) for name in names):
            expect_only_children(block, f"{path}.", names)
            return names
    raise refuse(path, "three dense blocks .rdb1, .rdb2 and .rdb3", block)


def _dense_conv(dense: nn.Module, number: int, path: str) -> tuple[object, str, object, str]:
    """Convolution `number` of a dense block and the activation after it, each with its path."""
    name = f"conv{number}"
    conv = getattr(dense, name, None)
    if not isinstance(conv, nn.Sequential):
        return conv, f"{path}.{name}", getattr(dense, "lrelu", None), f"{path}.lrelu"
    layers = expect_sequence(conv, f"{path}.{name}", 1 if number == CONVS else 2)
    return layers[0], f"{path}.{name}.0", layers[-1], f"{path}.{name}.1"


def _rrdb(block: nn.Module, path: str, channels: int, growth: int, keep: Tensor, stream: int) -> tuple[Step, ...]:
    """``x + 0.2 * y + 0.04 * conv5(y)``, y = rdb2(rdb1(x)). A step has only one `add`, so x + 0.2 * y is made first."""
    first, second, third = _dense_names(block, path)
    return (
        *_dense(getattr(block, first), f"{path}.{first}", channels, growth, stream, FIRST, RESIDUAL_SCALE, stream),
        *_dense(getattr(block, second), f"{path}.{second}", channels, growth, FIRST, SECOND, RESIDUAL_SCALE, FIRST),
        Conv(SECOND, STREAM, keep, scale=RESIDUAL_SCALE, add=stream),
        *_dense(getattr(block, third), f"{path}.{third}", channels, growth, SECOND, STREAM, RESIDUAL_SCALE**2, STREAM),
    )


def _dense(
    dense: nn.Module, path: str, channels: int, growth: int, src: int, dst: int, scale: float, add: int
) -> tuple[Step, ...]:
    """``dst = scale * conv5(src, maps of conv1 to conv4) + add``."""
    expect_only_children(dense, f"{path}.", ("lrelu", *(f"conv{i + 1}" for i in range(CONVS))))
    steps = []
    for i in range(CONVS):
        last = i == CONVS - 1
        conv, conv_path, act, act_path = _dense_conv(dense, i + 1, path)
        size = dict(in_channels=channels + i * growth, out_channels=channels if last else growth)
        conv = expect_conv(conv, conv_path, kernel=3, **size)
        sources = (src, *range(GROWTH, GROWTH + i))
        if last:
            steps.append(conv_step(conv, sources, dst, scale=scale, add=add))
        else:
            steps.append(leaky_conv_step(conv, sources, GROWTH + i, expect_leaky_relu(act, act_path)))
    return tuple(steps)


def _identity(conv: nn.Conv2d) -> Tensor:
    """A 1x1 kernel that keeps the channels as they are."""
    return torch.eye(conv.out_channels, dtype=conv.weight.dtype, device=conv.weight.device)[:, :, None, None]
