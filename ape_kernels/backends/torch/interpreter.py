"""Interprets the instruction table with torch operations.

The operands of convolutions have the dtype of the packed weights. The values between convolutions, above all the
residual stream, stay float32.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad, pixel_shuffle, prelu, relu

from ape_kernels.backends.order import leaving_first
from ape_kernels.backends.protocol import Exits, PatchResults, StageResults
from ape_kernels.backends.torch.precision import EXACT_FLOAT32
from ape_kernels.collapse import FIRST, INTERIOR, LAST, ONLY
from ape_kernels.modules import module
from ape_kernels.program import INPUT, Activation, Interpolation
from ape_kernels.table import NO_BUFFER, Column, Opcode, PackedProgram, float_from_bits

Row = list[int]
# Bytes that the widest buffer may take. So many patches run at once; on the CPU their maps then stay near the caches.
WIDEST_BYTES = {"cpu": 1 << 25, "cuda": 1 << 30}


@dataclass
class _Stage:
    src: int
    dst: int
    steps: list[Row] = field(default_factory=list)
    exit: Row | None = None


@dataclass
class Sections:
    """The instruction table taken apart. SOURCE rows stay before the convolution they belong to."""

    widest: int  # floats per low-resolution pixel of the widest buffer
    head: list[Row]
    stages: list[_Stage]
    tail: list[Row]

    @classmethod
    def of(cls, table: Tensor) -> Sections:
        """The sections of a table, int32 ``[rows, columns]`` on the CPU."""
        sections = cls(0, [], [], [])
        current = sections.head
        for row in table.tolist():
            match row[Column.OPCODE]:
                case Opcode.BUFFER:
                    size = row[Column.IN_CHANNELS] * row[Column.RESOLUTION] ** 2
                    sections.widest = max(sections.widest, size)
                case Opcode.STAGE:
                    sections.stages.append(_Stage(row[Column.SRC], row[Column.DST]))
                    current = sections.stages[-1].steps
                case Opcode.TAIL:
                    current = sections.tail
                case Opcode.EXIT:
                    sections.stages[-1].exit = row
                case _:
                    current.append(row)
        return sections


def run_patches(packed: PackedProgram, patches: Tensor, exits: Exits, out: PatchResults) -> None:
    sections = Sections.of(packed.table)
    count, _, height, width = patches.shape
    per_patch = sections.widest * height * width * 4
    at_once = max(1, WIDEST_BYTES.get(patches.device.type, 1 << 30) // per_patch)
    for begin in range(0, count, at_once):
        part = slice(begin, begin + at_once)
        forced = None if exits.exit_at is None else exits.exit_at[part]
        some = _run_part(sections, patches[part], packed.weights, Exits(exits.boundary, forced))
        # A module may have padded the patch to whole windows; the picture is cut to size here.
        out.sr[part] = some.sr[:, :, : out.sr.shape[2], : out.sr.shape[3]]
        out.exit_index[part], out.capacity[part] = some.exit_index, some.capacity


def run_stage(packed: PackedProgram, stage: int, features: Tensor, active: Tensor, exits: Exits) -> StageResults:
    sections = Sections.of(packed.table)
    if not 0 <= stage < len(sections.stages):
        raise ValueError(f"stage: expected 0 to {len(sections.stages) - 1}, got {stage}")
    unknown = features.new_full((len(features),), math.nan)
    out, *rest = _run_stage(sections, stage, features, active, unknown, packed.weights, exits)
    return StageResults(out.contiguous(), *rest)


def run_head(patches: Tensor, packed: PackedProgram) -> Tensor:
    """The features that the first stage reads, ``[P, C, h, w]``."""
    sections = Sections.of(packed.table)
    buffers = {INPUT: patches}
    run_steps(sections.head, buffers, packed.weights)
    return buffers[sections.stages[0].src]


def run_tail(patches: Tensor, features: Tensor, packed: PackedProgram) -> Tensor:
    """Pictures of patches that left with `features`. The head runs again, because the tail may read its buffers."""
    sections = Sections.of(packed.table)
    buffers = {INPUT: patches}
    run_steps(sections.head, buffers, packed.weights)
    buffers[sections.stages[-1].dst] = features
    return run_steps(sections.tail, buffers, packed.weights)


def run_all_exits(patches: Tensor, packed: PackedProgram) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures ``[P, O, s * h, s * w]`` and predictions ``[P, 1]`` of all patches at every exit, with gradients."""
    sections, weights = Sections.of(packed.table), packed.weights
    buffers = {INPUT: patches}
    run_steps(sections.head, buffers, weights)
    pictures, predictions = [], []
    for stage in sections.stages:
        run_steps(stage.steps, buffers, weights)
        if stage.exit is not None:
            predictions.append(_predict(stage.exit, buffers, weights)[:, None])
            leaving = {**buffers, sections.stages[-1].dst: buffers[stage.dst]}
            pictures.append(run_steps(sections.tail, leaving, weights))
    return pictures, predictions


def _run_part(sections: Sections, patches: Tensor, weights: Tensor, exits: Exits) -> PatchResults:
    """`run_patches` for patches that all run at once."""
    buffers = {INPUT: patches}
    run_steps(sections.head, buffers, weights)
    count = len(patches)
    ids = torch.arange(count, device=patches.device)
    exit_index = torch.full_like(ids, len(sections.stages) - 1)
    capacity = patches.new_full((count,), math.nan)
    features = buffers[sections.stages[0].src]
    done = torch.empty_like(features)
    for stage in range(len(sections.stages)):
        active = torch.arange(len(features), device=features.device)
        forced = None if exits.exit_at is None else exits.exit_at[ids]
        features, order, known, n_left = _run_stage(
            sections, stage, features, active, capacity[ids], weights, Exits(exits.boundary, forced)
        )
        ids = ids[order]
        capacity[ids] = known
        left = int(n_left)  # the only wait for the device at this exit
        done[ids[:left]] = features[:left]
        exit_index[ids[:left]] = stage
        features, ids = features[left:], ids[left:]
        if not len(ids):
            break
    buffers[sections.stages[-1].dst] = done
    return PatchResults(run_steps(sections.tail, buffers, weights), exit_index, capacity)


def _run_stage(
    sections: Sections,
    stage: int,
    features: Tensor,
    active: Tensor,
    capacity: Tensor,
    weights: Tensor,
    exits: Exits,
) -> StageResults:
    """`run_stage` without checks. `capacity` holds the last predicted capacity of each row of `features`, or NaN."""
    part = sections.stages[stage]
    buffers = {part.src: features[active]}
    run_steps(part.steps, buffers, weights)
    out = buffers[part.dst]
    capacity = capacity[active]
    leaves = torch.zeros(len(active), dtype=torch.bool, device=features.device)
    if part.exit is not None:
        prediction = _predict(part.exit, buffers, weights)
        capacity = 1 - prediction
        leaves = prediction >= exits.boundary
    if exits.exit_at is not None:
        leaves = exits.exit_at[active] <= stage
    if stage == len(sections.stages) - 1:
        leaves = torch.ones_like(leaves)
    order = leaving_first(leaves)
    return StageResults(out[order], active[order], capacity[order], leaves.sum()[None])


def run_steps(steps: list[Row], buffers: dict[int, Tensor], weights: Tensor) -> Tensor:
    """Run steps on `buffers`. Returns the picture of the last RECONSTRUCT; without one, an empty tensor."""
    pixels = weights.new_empty(0)
    sources: list[Tensor] = []
    for row in steps:
        src = buffers[row[Column.SRC]]
        match row[Column.OPCODE]:
            case Opcode.SOURCE:
                sources.append(src)
                continue
            case Opcode.CONV:
                out = _conv(row, torch.cat([*sources, src], dim=1) if sources else src, buffers, weights)
                sources = []
            case Opcode.ATTENTION:
                out = _attention(row, src, buffers, weights)
            case Opcode.UPSAMPLE:
                out = _upsample(row, src)
            case Opcode.MODULE:
                out = _run_module(module(row[Column.WEIGHT]), src, weights.dtype)
            case Opcode.RECONSTRUCT:
                pixels = _reconstruct(row, src, buffers, weights)
                continue
            case opcode:
                raise ValueError(f"table: unknown opcode {opcode}")
        buffers[row[Column.DST]] = out
    return pixels


def _run_module(step: nn.Module, src: Tensor, dtype: torch.dtype) -> Tensor:
    """Run the module in its own dtype, with its matrix products in `dtype`."""
    own = next((parameter.dtype for parameter in step.parameters()), src.dtype)
    with torch.autocast(src.device.type, dtype, enabled=dtype not in (own, torch.float32)):
        return step(src.to(own)).to(src.dtype)


def _conv(row: Row, src: Tensor, buffers: dict[int, Tensor], weights: Tensor) -> Tensor:
    kernel = row[Column.KERNEL]
    shape = (row[Column.OUT_CHANNELS], row[Column.IN_CHANNELS], kernel, kernel)
    weight = _take(weights, row[Column.WEIGHT], shape)
    if kernel == 1:  # It carries pixels or the residual stream and costs little: its operands are not rounded.
        operand, weight, bias = src, weight.to(src.dtype), _bias(row, shape[:1], src.dtype, weights)
    else:
        operand, bias = src.to(weights.dtype), _take(weights, row[Column.BIAS], shape[:1])
    with EXACT_FLOAT32:
        out = conv2d(operand, weight, bias, padding=kernel // 2).to(src.dtype)
    if row[Column.ACTIVATION] == Activation.RELU:
        out = relu(out)
    elif row[Column.ACTIVATION] == Activation.PRELU:
        out = prelu(out, _take(weights, row[Column.SLOPE], shape[:1]).to(out.dtype))
    return _scale_and_add(row, out, buffers)


def _attention(row: Row, src: Tensor, buffers: dict[int, Tensor], weights: Tensor) -> Tensor:
    channels, hidden = row[Column.IN_CHANNELS], row[Column.HIDDEN]
    matrices = _take(weights, row[Column.WEIGHT], (2, hidden * channels)).to(src.dtype)
    biases = _take(weights, row[Column.BIAS], (hidden + channels,)).to(src.dtype)
    squeeze, expand = matrices[0].view(hidden, channels), matrices[1].view(channels, hidden)
    squeezed = relu(src.mean(dim=(2, 3)) @ squeeze.T + biases[:hidden])
    gate = torch.sigmoid(squeezed @ expand.T + biases[hidden:])
    return _scale_and_add(row, src * gate[:, :, None, None], buffers)


def _scale_and_add(row: Row, out: Tensor, buffers: dict[int, Tensor]) -> Tensor:
    out = out * float_from_bits(row[Column.SCALE_BITS])
    return out if row[Column.ADD] == NO_BUFFER else out + buffers[row[Column.ADD]]


def _upsample(row: Row, src: Tensor) -> Tensor:
    factor = row[Column.UPSCALE]
    if row[Column.INTERPOLATION] == Interpolation.NEAREST:
        return interpolate(src, scale_factor=factor, mode="nearest")
    return interpolate(src, scale_factor=factor, mode="bicubic", align_corners=False)


def _predict(row: Row, buffers: dict[int, Tensor], weights: Tensor) -> Tensor:
    features, channels = buffers[row[Column.SRC]], row[Column.IN_CHANNELS]
    weight = _take(weights, row[Column.WEIGHT], (channels,)).to(features.dtype)
    bias = _take(weights, row[Column.BIAS], (1,)).to(features.dtype)
    return torch.tanh(features.mean(dim=(2, 3)) @ weight + bias)


def _reconstruct(row: Row, features: Tensor, buffers: dict[int, Tensor], weights: Tensor) -> Tensor:
    """One convolution per pair of border classes (nine at most), on the pixels that have these classes.

    The operands are rounded to the weights' dtype. The sums stay float32, because they are pixels.
    """
    phases, channels, size = row[Column.OUT_CHANNELS], row[Column.IN_CHANNELS], row[Column.KERNEL]
    classes = 4 if row[Column.MODE] else 1
    shape = (classes, classes, phases, channels, size, size)
    kernels = _take(weights, row[Column.WEIGHT], shape).to(features.dtype)
    biases = _bias(row, shape[:3], features.dtype, weights)
    count, _, height, width = features.shape
    padded = pad(features.to(weights.dtype).to(features.dtype), (size // 2,) * 4)
    out = features.new_empty(count, phases, height, width)
    for row_class, top, bottom in _border_classes(height, classes):
        for column_class, left, right in _border_classes(width, classes):
            window = padded[:, :, top : bottom + size - 1, left : right + size - 1]
            kernel, bias = kernels[row_class, column_class], biases[row_class, column_class]
            # TF32 holds operands of 16 bits exactly and is many times faster.
            with EXACT_FLOAT32 if weights.dtype == torch.float32 else nullcontext():
                out[:, :, top:bottom, left:right] = conv2d(window, kernel, bias)
    pixels = pixel_shuffle(out, row[Column.UPSCALE])
    return pixels if row[Column.ADD] == NO_BUFFER else pixels + buffers[row[Column.ADD]]


def _border_classes(size: int, classes: int) -> list[tuple[int, int, int]]:
    """(class, begin, end) for the pixels of an axis. With one class all pixels are interior."""
    if classes == 1:
        return [(INTERIOR, 0, size)]
    if size == 1:
        return [(ONLY, 0, 1)]
    kinds = [(FIRST, 0, 1), (INTERIOR, 1, size - 1), (LAST, size - 1, size)]
    return [(kind, begin, end) for kind, begin, end in kinds if begin < end]


def _bias(row: Row, shape: tuple[int, ...], dtype: torch.dtype, weights: Tensor) -> Tensor:
    """A bias to the precision of `dtype`: the sum of its two parts (see `_in_two` where they are packed)."""
    rounded, rest = _take(weights, row[Column.BIAS], (2, *shape)).to(dtype)
    return rounded + rest


def _take(weights: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
    return weights[offset : offset + math.prod(shape)].view(shape)
