"""Plain chains of convolution and activation: what VDSR, ECBSR and Compact have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ape_kernels.adapters.parts import exits, one_kernel, stages
from ape_kernels.adapters.recognise import refuse
from ape_kernels.program import (
    INPUT,
    Activation,
    Buffer,
    Conv,
    Exit,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Step,
    Upsample,
)


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution and what follows it. Its fields are those of `Conv`."""

    weight: Tensor
    bias: Tensor | None
    activation: Activation = Activation.NONE
    slope: Tensor | None = None

    def step(self, src: int, dst: int) -> Conv:
        """The layer from buffer `src` to `dst`."""
        return Conv(src, dst, self.weight, self.bias, self.activation, self.slope)


def expect_activation(module: object, path: str, channels: int) -> tuple[Activation, Tensor | None]:
    """Activation and slope ``[channels]`` of an nn.ReLU, nn.LeakyReLU or nn.PReLU."""
    match module:
        case nn.ReLU():
            return Activation.RELU, None
        case nn.LeakyReLU():
            return Activation.PRELU, torch.full((channels,), module.negative_slope, dtype=torch.float32, device="cpu")
        case nn.PReLU():
            if module.num_parameters not in (1, channels):
                raise refuse(path, f"num_parameters 1 or {channels}", module.num_parameters)
            return Activation.PRELU, module.weight.expand(channels)
        case _:
            raise refuse(path, "an nn.ReLU, nn.LeakyReLU or nn.PReLU", module)


def expect_shuffle(module: object, path: str) -> int:
    """Factor of an nn.PixelShuffle."""
    if not isinstance(module, nn.PixelShuffle):
        raise refuse(path, "an nn.PixelShuffle", module)
    return module.upscale_factor


def expect_bicubic(module: object, path: str) -> int:
    """Factor of a bicubic nn.Upsample, a whole number and the same for both axes."""
    if not isinstance(module, nn.Upsample):
        raise refuse(path, "an nn.Upsample", module)
    for name, allowed in (("mode", ("bicubic",)), ("align_corners", (False, None)), ("size", (None,))):
        if getattr(module, name) not in allowed:
            raise refuse(path, f"{name} {allowed[0]}", getattr(module, name))
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,)
    factor = factors[0]
    if factor is None or len(set(factors)) != 1 or factor < 1 or factor != int(factor):
        raise refuse(path, "scale_factor a whole number", module.scale_factor)
    return int(factor)


def chain(
    layers: Sequence[Layer], interval: int, exit_step: Exit | None, source: int, stream: int, other: int
) -> tuple[Step, tuple[Stage, ...]]:
    """The first layer as a head that reads buffer `source`, and the rest as stages whose features leave in `stream`.

    A convolution cannot write the buffer that it reads. Features therefore go back and forth between `stream` and
    `other`, which are alike. After an odd number of layers they end in the wrong one, and are copied.
    """
    head, *rest = layers
    blocks = []
    for i, layer in enumerate(rest):
        begin = i - i % interval
        src, dst = _buffers(min(begin + interval, len(rest)) - i, stream, other)
        copied = (Upsample(stream, other, Interpolation.NEAREST),) if i == begin > 0 and src == other else ()
        blocks.append((*copied, layer.step(src, dst)))
    first = _buffers(min(interval, len(rest)), stream, other)[0]
    return head.step(source, first), stages(blocks, interval, exit_step, first=first, stream=stream)


def _buffers(layers_left: int, stream: int, other: int) -> tuple[int, int]:
    """The buffers that a layer reads and writes, so that the last layer of the stage writes `stream`."""
    return (other, stream) if layers_left % 2 else (stream, other)


def shuffled_chain(
    model: nn.Module, layers: Sequence[Layer], closing: Layer, scale: int, interpolation: Interpolation
) -> PatchProgram:
    """``pixel_shuffle(closing(layers(input)), scale) + interpolate(input, scale)``, with exits where the model has any.

    layers: the first one from C_in to C channels, the others from C to C. closing: from C to C_in * scale * scale.
    """
    picture, stream, other = 1, 2, 3  # buffers, after INPUT
    channels, colors = layers[0].weight.shape[:2]
    exit_step, interval, exit_threshold = exits(model, channels, len(layers) - 1, stream)
    head, stages_ = chain(layers, interval, exit_step, INPUT, stream, other)
    return PatchProgram(
        buffers=(Buffer(colors), Buffer(colors, scale), Buffer(channels), Buffer(channels)),
        head=(Upsample(INPUT, picture, interpolation), head),
        stages=stages_,
        tail=(Reconstruct(stream, one_kernel(closing.weight, closing.bias), scale, add=picture),),
        exit_threshold=exit_threshold,
    )
