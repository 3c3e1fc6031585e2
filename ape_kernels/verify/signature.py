"""A program without its weights, as JSON; and a program with random weights that is made from it.

Two programs with equal signatures have the same instruction table, except for the offsets of their weights: the same
buffers, steps, channels, kernel sizes, activations, scales and exits, in the same order. Repeated stages are listed
one by one, because a backend's limits may depend on the number of rows of the table.

The random weights keep signals of order one through any number of steps. The weights of a convolution have a deviation
of one over the root of its fan-in, times the root of 2 before an activation. If n steps of a program add to other
buffers, each adds values of deviation one over the root of n. Together they make the values at most e times as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ape_kernels.collapse import CollapsedTail
from ape_kernels.program import (
    Activation,
    Buffer,
    ChannelAttention,
    Conv,
    Exit,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Step,
    Upsample,
)

Json = dict[str, Any]
SMALL = 0.05  # deviation of biases
GATE = 1.0  # deviation of the arguments of a channel attention's sigmoid, around their mean


def signature_of(program: PatchProgram) -> Json:
    """The signature of a program. Raises ValueError for `Module` steps, because shapes do not describe their code."""
    return {
        "buffers": [[buffer.channels, buffer.resolution] for buffer in program.buffers],
        "head": [_described(step) for step in program.head],
        "stages": [
            {"src": stage.src, "dst": stage.dst, "steps": [_described(step) for step in stage.steps]}
            for stage in program.stages
        ],
        "tail": [_described(step) for step in program.tail],
    }


def conv(
    src: Sequence[int],
    dst: int,
    in_channels: int,
    out_channels: int,
    kernel: int,
    activation: Activation = Activation.NONE,
    scale: float = 1.0,
    add: int | None = None,
) -> Json:
    """Signature of a `Conv`."""
    return {
        "step": "Conv",
        "src": list(src),
        "dst": dst,
        "in": in_channels,
        "out": out_channels,
        "kernel": kernel,
        "activation": int(activation),
        "scale": scale,
        "add": add,
    }


def attention(src: int, dst: int, channels: int, hidden: int, scale: float = 1.0, add: int | None = None) -> Json:
    """Signature of a `ChannelAttention`."""
    sizes = {"channels": channels, "hidden": hidden}
    return {"step": "ChannelAttention", "src": src, "dst": dst, **sizes, "scale": scale, "add": add}


def upsample(src: int, dst: int, interpolation: Interpolation) -> Json:
    """Signature of an `Upsample`."""
    return {"step": "Upsample", "src": src, "dst": dst, "interpolation": int(interpolation)}


def exit_step(src: int, channels: int) -> Json:
    """Signature of an `Exit`."""
    return {"step": "Exit", "src": src, "channels": channels}


def reconstruct(
    src: int, channels: int, phases: int, kernel: int, classes: int, upscale: int, add: int | None = None
) -> Json:
    """Signature of a `Reconstruct`.

    phases: channels of the picture times upscale**2. classes: border classes of an axis, 4; or 1 for one kernel.
    """
    sizes = {"channels": channels, "phases": phases, "kernel": kernel, "classes": classes, "upscale": upscale}
    return {"step": "Reconstruct", "src": src, **sizes, "add": add}


def _described(step: Step) -> Json:
    match step:
        case Conv():
            out_channels, in_channels, kernel, _ = step.weight.shape
            return conv(
                step.sources, step.dst, in_channels, out_channels, kernel, step.activation, float(step.scale), step.add
            )
        case ChannelAttention():
            hidden, channels = step.squeeze.shape
            return attention(step.src, step.dst, channels, hidden, float(step.scale), step.add)
        case Upsample():
            return upsample(step.src, step.dst, step.interpolation)
        case Exit():
            return exit_step(step.src, len(step.weight))
        case Reconstruct():
            classes, _, phases, channels, kernel, _ = step.tail.kernel.shape
            return reconstruct(step.src, channels, phases, kernel, classes, step.upscale, step.add)
        case _:
            raise ValueError(f"program: expected no Module steps, got one of {type(step.module).__name__}")


def program_of(signature: Json, exits: Iterable[tuple[Tensor, Tensor]] | None = None) -> PatchProgram:
    """A program of this signature, on the CPU in float32. Its random weights are the same every time.

    exits: weight ``[C]`` and bias ``[1]`` of each exit, in program order; None for zeros.
    """
    parts = (signature["head"], *(stage["steps"] for stage in signature["stages"]), signature["tail"])
    adding = sum(step["step"] != "Reconstruct" and step.get("add") is not None for part in parts for step in part)
    weights = _Weights(1 / max(1, adding) ** 0.5, exits)
    return PatchProgram(
        buffers=tuple(Buffer(channels, resolution) for channels, resolution in signature["buffers"]),
        head=weights.steps(signature["head"]),
        stages=tuple(Stage(stage["src"], stage["dst"], weights.steps(stage["steps"])) for stage in signature["stages"]),
        tail=weights.steps(signature["tail"]),
    )


class _Weights:
    """Draws the weights of one step after the other."""

    def __init__(self, added: float, exits: Iterable[tuple[Tensor, Tensor]] | None) -> None:
        """added: deviation of what a step adds to a buffer of deviation 1."""
        self.generator = torch.Generator().manual_seed(0)
        self.added = added
        self.exits = None if exits is None else iter(exits)

    def normal(self, *shape: int, deviation: float) -> Tensor:
        return torch.randn(shape, generator=self.generator).mul_(deviation)

    def steps(self, described: Sequence[Json]) -> tuple[Step, ...]:
        return tuple(self.step(step) for step in described)

    def step(self, step: Mapping[str, Any]) -> Step:
        match step["step"]:
            case "Conv":
                return self.conv(step)
            case "ChannelAttention":
                return self.attention(step)
            case "Upsample":
                return Upsample(step["src"], step["dst"], Interpolation(step["interpolation"]))
            case "Exit":
                weight, bias = (
                    (torch.zeros(step["channels"]), torch.zeros(1)) if self.exits is None else next(self.exits)
                )
                return Exit(step["src"], weight, bias)
            case "Reconstruct":
                return self.reconstruct(step)
            case other:
                raise ValueError(f"signature: expected a step of a patch program, got {other!r}")

    def conv(self, step: Mapping[str, Any]) -> Conv:
        activation = Activation(step["activation"])
        shape = (step["out"], step["in"], step["kernel"], step["kernel"])
        deviation = self.gain(step) / math.prod(shape[1:]) ** 0.5
        deviation *= 1.0 if activation is Activation.NONE else 2**0.5
        return Conv(
            tuple(step["src"]),
            step["dst"],
            self.normal(*shape, deviation=deviation),
            self.normal(shape[0], deviation=SMALL),
            activation,
            torch.rand(shape[0], generator=self.generator) * 0.3 if activation is Activation.PRELU else None,
            step["scale"],
            step["add"],
        )

    def attention(self, step: Mapping[str, Any]) -> ChannelAttention:
        channels, hidden = step["channels"], step["hidden"]
        gate = min(self.gain(step), 0.5)  # the sigmoid of its mean argument
        return ChannelAttention(
            step["src"],
            step["dst"],
            self.normal(hidden, channels, deviation=1 / channels**0.5),
            self.normal(hidden, deviation=1.0),  # most maps have small means, so these biases make the gates differ
            self.normal(channels, hidden, deviation=GATE / hidden**0.5),
            self.normal(channels, deviation=GATE).add_(math.log(gate / (1 - gate))),
            step["scale"],
            step["add"],
        )

    def reconstruct(self, step: Mapping[str, Any]) -> Reconstruct:
        classes, phases, channels, kernel = (step[name] for name in ("classes", "phases", "channels", "kernel"))
        shape = (classes, classes, phases, channels, kernel, kernel)
        weight = self.normal(*shape, deviation=1 / (channels * kernel**2) ** 0.5)
        tail = CollapsedTail(weight, self.normal(classes, classes, phases, deviation=SMALL))
        return Reconstruct(step["src"], tail, step["upscale"], step["add"])

    def gain(self, step: Mapping[str, Any]) -> float:
        """Deviation of a step's result, before its scale, for an input of deviation 1."""
        return (1.0 if step["add"] is None else self.added) / (abs(step["scale"]) or 1.0)
