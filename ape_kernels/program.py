"""Patch programs: the short list of steps that every backend runs over a few patch-sized buffers.

Adapters turn a network into a `PatchProgram`; backends `pack` it into an int32 instruction table and
one weight buffer, and interpret the table. The table is described in docs/program.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor, nn

from ape_kernels.collapse import CollapsedTail

INPUT = 0  # buffer that holds the low-resolution patch


class Activation(IntEnum):
    """Activation of a `Conv`, as stored in the instruction table."""

    NONE = 0
    RELU = 1
    PRELU = 2


class Interpolation(IntEnum):
    """Kind of an `Upsample`, as stored in the instruction table."""

    NEAREST = 0
    BICUBIC = 1


@dataclass(frozen=True)
class Buffer:
    """A feature map of the program: `channels` at `resolution` times the patch's height and width."""

    channels: int
    resolution: int = 1


@dataclass(frozen=True)
class Conv:
    """``dst = scale * act(conv(src) + bias) + add``, zero-padded, stride 1.

    src: buffer number, or several whose channels are concatenated (dense blocks). dst: not among them.
    add: buffer number or None; may be `dst` or a source. All at one resolution.
    weight: ``[C_out, C_in, k, k]``, k odd, C_in over all sources. bias: ``[C_out]`` or None.
    activation: PRELU takes `slope` ``[C_out]``, what negative values are multiplied with.
    """

    src: int | tuple[int, ...]
    dst: int
    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = Activation.NONE
    slope: Tensor | None = None
    scale: float = 1.0
    add: int | None = None

    def __post_init__(self) -> None:
        if self.dst in self.sources:
            raise ValueError(f"src: a convolution cannot write the buffer it reads, got {self.dst} for both")
        if (self.slope is not None) != (self.activation is Activation.PRELU):
            raise ValueError("slope: expected with the activation PRELU, and only there")

    @property
    def sources(self) -> tuple[int, ...]:
        """The buffers read."""
        return self.src if isinstance(self.src, tuple) else (self.src,)

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a pixel of `dst`, multiplications and additions of the direct convolution."""
        return 2 * self.weight.numel()


@dataclass(frozen=True)
class ChannelAttention:
    """``dst = scale * src * sigmoid(expand(relu(squeeze(mean(src))))) + add`` (RCAN, Zhang et al. 2018).

    src, dst: buffer numbers, may be equal. squeeze: ``[H, C]`` and bias ``[H]``; expand: ``[C, H]`` and ``[C]``.
    """

    src: int
    dst: int
    squeeze: Tensor
    squeeze_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    scale: float = 1.0
    add: int | None = None

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a pixel: the mean and the product; the two small layers run once a patch."""
        return 2 * len(self.expand)


@dataclass(frozen=True)
class Upsample:
    """``dst = interpolate(src)``; the ratio of the buffers' resolutions is the factor.

    BICUBIC is PyTorch's: a = -0.75, half-pixel centres, indices clamped at the borders.
    """

    src: int
    dst: int
    interpolation: Interpolation

    flops_per_pixel = 0


@dataclass(frozen=True)
class Module:
    """``dst = module(src)``: anything else, run by PyTorch on the patches still active.

    module: maps ``[N, C_src, h, w]`` to ``[N, C_dst, h', w']``, patches independent of each other.
    """

    src: int
    dst: int
    module: nn.Module
    flops_per_pixel: int = 0


@dataclass(frozen=True)
class Exit:
    """Predict how little the stage brought: ``tanh(weight . mean(src) + bias)``; leave where it reaches the boundary.

    weight: ``[C]``. bias: ``[1]``.
    """

    src: int
    weight: Tensor
    bias: Tensor

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a pixel of `src`: the additions of the mean."""
        return self.weight.numel()


@dataclass(frozen=True)
class Reconstruct:
    """``pixels = pixel_shuffle(conv(src) + bias, upscale) + add``: the last step of every program.

    tail: the kernels by border class (a collapsed tail), or one kernel for all pixels ``[O * s * s, C, k, k]``
    with its bias. add: a buffer at the picture's resolution, or None.
    """

    src: int
    tail: CollapsedTail
    upscale: int
    add: int | None = None

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs a pixel of `src`."""
        return 2 * self.tail.kernel[0, 0].numel()


Weighted = Conv | ChannelAttention | Exit | Reconstruct  # a step that has weights
Step = Weighted | Upsample | Module


@dataclass(frozen=True)
class Stage:
    """The steps between two exits. Features enter in buffer `src` and leave in buffer `dst`.

    The last step may be an `Exit`; without one no patch leaves here unless it is the last stage.
    """

    src: int
    dst: int
    steps: tuple[Step, ...]

    @property
    def has_exit(self) -> bool:
        """Whether the stage ends in an `Exit`."""
        return bool(self.steps) and isinstance(self.steps[-1], Exit)


@dataclass(frozen=True)
class PatchProgram:
    """A network as steps over patch-sized buffers.

    buffers: each buffer's channels and resolution; buffer 0 is the low-resolution patch, folded.
    head, stages, tail: run in this order; the tail ends in a `Reconstruct`.
    exit_threshold: the wrapped model's own prediction from which a patch leaves, or None.
    fold: buffer 0 holds squares of fold x fold pixels as one pixel of fold**2 times the channels; whoever runs the
    program has folded them (`patches.fold_pixels`). 1 for most.
    multiple_of: what the wrapped model may need height and width divided by, in pixels; the program takes any size.
    """

    buffers: tuple[Buffer, ...]
    head: tuple[Step, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Step, ...]
    exit_threshold: float | None = None
    fold: int = 1
    multiple_of: int = 1

    @property
    def reconstruct(self) -> Reconstruct:
        """The step that ends the tail."""
        last = self.tail[-1]
        assert isinstance(last, Reconstruct)
        return last

    @property
    def upscale(self) -> int:
        """Upscaling factor from buffer 0 to the picture."""
        return self.reconstruct.upscale * self.buffers[self.reconstruct.src].resolution

    @property
    def scale(self) -> int:
        """Upscaling factor from the image to the picture."""
        return self.upscale // self.fold

    @property
    def out_channels(self) -> int:
        """Channels of the picture."""
        return self.reconstruct.tail.kernel.shape[2] // self.reconstruct.upscale**2

    @property
    def in_channels(self) -> int:
        """Channels of the image, before it is folded."""
        return self.buffers[INPUT].channels // self.fold**2

    @property
    def opaque(self) -> str:
        """The classes of its `Module` steps, comma-separated: what only PyTorch can run. Empty for most."""
        return ", ".join(sorted({type(step.module).__name__ for step in self.steps() if isinstance(step, Module)}))

    def steps(self) -> Iterator[Step]:
        """All steps in program order."""
        yield from self.head
        for stage in self.stages:
            yield from stage.steps
        yield from self.tail

    def flops_to_stage(self, stage: int) -> int:
        """FLOPs a low-resolution pixel costs a patch that leaves after `stage`: head, stages 0..stage, tail."""
        done = [step for part in self.stages[: stage + 1] for step in part.steps]
        return self._flops((*self.head, *done, *self.tail))

    def body_flops_to_stage(self, stage: int) -> int:
        """The stages' share of `flops_to_stage`: what an exit can save."""
        return self._flops(step for part in self.stages[: stage + 1] for step in part.steps)

    @property
    def stage_flops(self) -> list[int]:
        """FLOPs a low-resolution pixel of each stage."""
        return [self._flops(stage.steps) for stage in self.stages]

    def _flops(self, steps: Iterable[Step]) -> int:
        """FLOPs a low-resolution pixel."""
        return sum(step.flops_per_pixel * self.buffers[_at(step)].resolution ** 2 for step in steps)


def _at(step: Step) -> int:
    """The buffer whose pixels a step is counted by."""
    return step.src if isinstance(step, Exit | Reconstruct) else step.dst
