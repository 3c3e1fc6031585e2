"""Patch programs: the short list of steps that every backend runs over a few patch-sized buffers.

Adapters turn a network into a `PatchProgram`. Backends `pack` it into an int32 instruction table and one weight buffer,
and interpret the table. docs/program.md describes the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor, nn

from ape_kernels.brief import brief_repr
from ape_kernels.collapse import CollapsedTail

INPUT = 0  # the buffer that holds the low-resolution patch


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

    src: a buffer number, or several; then their channels are concatenated (dense blocks). dst: not one of them.
    add: a buffer number or None; it may be `dst` or a source. All these buffers have one resolution.
    weight: ``[C_out, C_in, k, k]``, k odd, C_in of all sources together. bias: ``[C_out]`` or None.
    activation: PRELU multiplies negative values by `slope` ``[C_out]``.

    Raises ValueError when `dst` is a source, and when PRELU has no slope or another activation has one.
    """

    src: int | tuple[int, ...]
    dst: int
    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = Activation.NONE
    slope: Tensor | None = None
    scale: float = 1.0
    add: int | None = None

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        if self.dst in self.sources:
            raise ValueError(f"src: a convolution cannot write the buffer it reads, got {self.dst} for both")
        if (self.slope is not None) != (self.activation is Activation.PRELU):
            raise ValueError("slope: expected with the activation PRELU, and only there")

    @property
    def sources(self) -> tuple[int, ...]:
        """The buffers that the convolution reads."""
        return self.src if isinstance(self.src, tuple) else (self.src,)

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs per pixel of `dst`: multiplications and additions of the direct convolution."""
        return 2 * self.weight.numel()


@dataclass(frozen=True)
class ChannelAttention:
    """``dst = scale * src * sigmoid(expand(relu(squeeze(mean(src))))) + add`` (RCAN, Zhang et al. 2018).

    src, dst: buffer numbers; they may be equal. squeeze: ``[H, C]``, squeeze_bias: ``[H]``, expand: ``[C, H]``,
    expand_bias: ``[C]``.
    """

    src: int
    dst: int
    squeeze: Tensor
    squeeze_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    scale: float = 1.0
    add: int | None = None

    __repr__ = brief_repr

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs per pixel: the mean and the product. The two small layers run once per patch and do not count."""
        return 2 * len(self.expand)


@dataclass(frozen=True)
class Upsample:
    """``dst = interpolate(src)``. The factor is the ratio of the two buffers' resolutions.

    BICUBIC is PyTorch's: a = -0.75, half-pixel centres, indices clamped at the borders. It counts no FLOPs.
    """

    src: int
    dst: int
    interpolation: Interpolation

    flops_per_pixel = 0


@dataclass(frozen=True)
class Module:
    """``dst = module(src)``: a step of any other kind. PyTorch runs it on the patches that have not left.

    module: maps ``[N, C_src, h, w]`` to ``[N, C_dst, h', w']``. Each patch's result depends on this patch alone.
    """

    src: int
    dst: int
    module: nn.Module
    flops_per_pixel: int = 0

    __repr__ = brief_repr


@dataclass(frozen=True)
class Exit:
    """Predict how little the stage brought: ``tanh(weight . mean(src) + bias)``.

    A patch leaves where the prediction reaches the boundary. weight: ``[C]``. bias: ``[1]``.
    """

    src: int
    weight: Tensor
    bias: Tensor

    __repr__ = brief_repr

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs per pixel of `src`: the additions of the mean."""
        return self.weight.numel()


@dataclass(frozen=True)
class Reconstruct:
    """``pixels = pixel_shuffle(conv(src) + bias, upscale) + add``: the last step of every program.

    tail: one kernel per pair of border classes (a collapsed tail); or one kernel for all pixels, whose shape is
    ``[1, 1, O * s * s, C, k, k]``, with its bias. add: a buffer at the picture's resolution, or None.
    """

    src: int
    tail: CollapsedTail
    upscale: int
    add: int | None = None

    __repr__ = brief_repr

    @property
    def flops_per_pixel(self) -> int:
        """FLOPs per pixel of `src`."""
        return 2 * self.tail.kernel[0, 0].numel()


Weighted = Conv | ChannelAttention | Exit | Reconstruct  # a step that has weights
Step = Weighted | Upsample | Module


@dataclass(frozen=True)
class Stage:
    """The steps between two exits. Features enter in buffer `src` and leave in buffer `dst`.

    The last step may be an `Exit`. Without one no patch leaves after this stage, unless it is the last stage.
    """

    src: int
    dst: int
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        names = ", ".join(type(step).__name__ for step in self.steps)
        return f"Stage(src={self.src}, dst={self.dst}, steps=({names}))"

    @property
    def has_exit(self) -> bool:
        """Whether the stage ends in an `Exit`."""
        return bool(self.steps) and isinstance(self.steps[-1], Exit)


@dataclass(frozen=True)
class PatchProgram:
    """A network as steps over patch-sized buffers.

    buffers: the channels and the resolution of each buffer. Buffer 0 is the low-resolution patch, folded.
    head, stages, tail: run in this order. The tail ends in a `Reconstruct`.
    exit_threshold: the prediction from which on a patch leaves in the wrapped model itself, or None.
    fold: one pixel of buffer 0 holds a square of fold x fold pixels of the image, with fold**2 times the channels.
    The caller folds them (`folding.fold_pixels`). Most networks have 1.
    multiple_of: the wrapped model may need a height and a width that this number of pixels divides. The program itself
    takes any size.
    """

    buffers: tuple[Buffer, ...]
    head: tuple[Step, ...]
    stages: tuple[Stage, ...]
    tail: tuple[Step, ...]
    exit_threshold: float | None = None
    fold: int = 1
    multiple_of: int = 1

    def __repr__(self) -> str:
        exits = sum(stage.has_exit for stage in self.stages)
        last = len(self.stages) - 1
        words = [
            f"x{self.scale}",
            f"{self.in_channels} to {self.out_channels} channels",
            f"{last + 1} stages, {exits} with an exit",
            f"{len(list(self.steps()))} steps",
            f"{self.flops_to_stage(last) / self.fold**2 / 1000:.0f} kFLOPs per pixel",
        ]
        return f"PatchProgram({', '.join(words)}{f', run by PyTorch: {self.opaque}' if self.opaque else ''})"

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
        """The class names of its `Module` steps, comma-separated. Only PyTorch can run these. Empty without any."""
        return ", ".join(sorted({type(step.module).__name__ for step in self.steps() if isinstance(step, Module)}))

    def steps(self) -> Iterator[Step]:
        """All steps in program order."""
        yield from self.head
        for stage in self.stages:
            yield from stage.steps
        yield from self.tail

    def flops_to_stage(self, stage: int) -> int:
        """FLOPs per low-resolution pixel of a patch that leaves after `stage`: head, stages 0 to `stage`, tail."""
        done = [step for part in self.stages[: stage + 1] for step in part.steps]
        return self._flops((*self.head, *done, *self.tail))

    def body_flops_to_stage(self, stage: int) -> int:
        """The part of `flops_to_stage` that the stages take. An exit can save FLOPs of the stages only."""
        return self._flops(step for part in self.stages[: stage + 1] for step in part.steps)

    @property
    def head_flops(self) -> int:
        """FLOPs of the head per low-resolution pixel."""
        return self._flops(self.head)

    def _flops(self, steps: Iterable[Step]) -> int:
        """FLOPs per low-resolution pixel."""
        return sum(step.flops_per_pixel * self.buffers[_at(step)].resolution ** 2 for step in steps)


def _at(step: Step) -> int:
    """The buffer to whose pixels the `flops_per_pixel` of a step refer."""
    return step.src if isinstance(step, Exit | Reconstruct) else step.dst
