"""Reads a state dict of another project. Every failure is a ValueError that names the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ape_sr.models.base import ExitNetwork
from ape_sr.models.edsr import RGB_MEAN, MeanShift

State = Mapping[str, Tensor]
Rename = Callable[[str], str]  # a name of ours -> the key there
Network = TypeVar("Network", bound=ExitNetwork)

# buffers that published networks store and ours compute
COMPUTED = (".relative_position_index", ".attn_mask")


@dataclass(frozen=True)
class Unsaid:
    """What a state dict does not hold. None where nobody said it.

    exit_interval: blocks between exits. res_scale: factor of EDSR's residual blocks. scale: VDSR's upscaling factor.
    """

    exit_interval: int | None = None
    res_scale: float | None = None
    scale: int | None = None


def interval(state: State, unsaid: Unsaid) -> int | None:
    """Blocks between exits: None for a plain network."""
    if "regressor.2.weight" in state and unsaid.exit_interval is None:
        raise ValueError("exit_interval: expected the blocks between exits, as regressor.2.weight is there, got None")
    return unsaid.exit_interval


def filled(model: Network, state: State, rename: Rename = str) -> Network:
    """`model` in evaluation mode, with the values of `state`. It must have a place for every one of them."""
    used: set[str] = set()
    for name, ours in model.state_dict().items():
        key = rename(name)
        ours.copy_(tensor(state, key, tuple(ours.shape)))
        used.add(key)
    for key in state:
        if key not in used and not key.endswith(COMPUTED):
            raise ValueError(f"{key}: expected no such key, got one")
    return model.eval()


def tensor(state: State, key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this shape."""
    value = state.get(key)
    if not isinstance(value, Tensor):
        raise ValueError(f"{key}: expected a tensor {list(shape)}, got {_what(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{key}: expected {list(shape)}, got {list(value.shape)}")
    return value


def sizes(state: State, key: str, dimensions: int = 4) -> tuple[int, ...]:
    """The shape of a tensor of so many dimensions. By default it is a convolution's weight, ``[out, in, k, k]``."""
    value = state.get(key)
    if not isinstance(value, Tensor) or value.ndim != dimensions or 0 in value.shape:
        got = list(value.shape) if isinstance(value, Tensor) else _what(value)
        what = "the weight of a convolution, [out, in, k, k]" if dimensions == 4 else f"{dimensions} dimensions"
        raise ValueError(f"{key}: expected {what}, got {got}")
    return tuple(value.shape)


def count(state: State, key: Callable[[int], str], what: str) -> int:
    """How many keys there are, numbered from 0 without a gap. There must be at least one `what`."""
    number = 0
    while key(number) in state:
        number += 1
    if number == 0:
        raise ValueError(f"{key(0)}: expected the first {what}, got no such key")
    return number


def shuffle_scale(state: State, key: str) -> int:
    """The scale s of a last convolution to ``3 * s * s`` channels, before a pixel shuffle."""
    channels = sizes(state, key)[0]
    scale = round((channels / 3) ** 0.5)
    if 3 * scale**2 != channels:
        raise ValueError(f"{key}: expected 3 * scale * scale channels out, got {channels}")
    return scale


def upsampler_scale(state: State, key: Callable[[int], str]) -> int:
    """The product of an upsampler's steps, which are convolutions from C to 4 C or 9 C at even positions."""
    scale, position = 1, 0
    while key(position) in state:
        out_channels, in_channels = sizes(state, key(position))[:2]
        factor = {4: 2, 9: 3}.get(out_channels // in_channels)
        if factor is None or out_channels % in_channels:
            raise ValueError(
                f"{key(position)}: expected 4 or 9 times as many channels out as in, got {out_channels}, {in_channels}"
            )
        scale *= factor
        position += 2
    return scale


def with_mean_shift(state: State) -> tuple[State, float]:
    """`state` with sub_mean and add_mean, and the largest value of a pixel. Where there were none, they do nothing."""
    if any(name.startswith(("sub_mean.", "add_mean.")) for name in state):
        return state, _rgb_range(state)
    return {**state, **mean_shift(0.0)}, 1.0


def mean_shift(rgb_range: float) -> dict[str, Tensor]:
    """The tensors of sub_mean and add_mean for images of that range. With 0 they do nothing."""
    shifts = {"sub_mean": MeanShift(rgb_range, -1), "add_mean": MeanShift(rgb_range, 1)}
    return {f"{name}.{key}": value for name, shift in shifts.items() for key, value in shift.state_dict().items()}


def _rgb_range(state: State) -> float:
    bias = tensor(state, "sub_mean.bias", (3,)).double()
    ratios = -bias / torch.tensor(RGB_MEAN, dtype=torch.float64)
    rgb_range = float(ratios.mean())
    if not (rgb_range > 0 and torch.allclose(ratios, ratios.mean(), rtol=1e-3)):
        raise ValueError(f"sub_mean.bias: expected a multiple of -{list(RGB_MEAN)}, got {bias.tolist()}")
    return round(rgb_range, 3)


def _what(value: object) -> str:
    return "no such key" if value is None else type(value).__name__
