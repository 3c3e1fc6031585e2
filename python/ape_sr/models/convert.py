"""EDSR from bare state dicts as other projects publish them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ape_sr.models.edsr import EDSR, RGB_MEAN, MeanShift

IMG_RANGE = 255.0  # BasicSR's default, with which its EDSR weights are published
# our name -> BasicSR's; the closing convolution is the one entry of `body` without a body of its own
BASICSR = (
    (r"head\.0\.(\w+)", r"conv_first.\1"),
    (r"body\.(\d+)\.body\.0\.(\w+)", r"body.\1.conv1.\2"),
    (r"body\.(\d+)\.body\.2\.(\w+)", r"body.\1.conv2.\2"),
    (r"body\.\d+\.(weight|bias)", r"conv_after_body.\1"),
    (r"tail\.0\.(\d+)\.(\w+)", r"upsample.\1.\2"),
    (r"tail\.1\.(\w+)", r"conv_last.\1"),
)


def from_state_dict(
    state: Mapping[str, Tensor], *, exit_interval: int | None = None, res_scale: float | None = None
) -> EDSR:
    """Build an `EDSR` that computes what the network `state` was saved from computes.

    state: named as by EDSR-PyTorch and APE (``head.0``, ``body.N.body.0``, ``tail``, with or without
    sub_mean, add_mean and regressor), or as by BasicSR (``conv_first``, ``body.N.conv1``, ...; images in
    [0, 1], its range of 255 is folded into the first and the last convolution).
    exit_interval: blocks between exits; needed exactly when there is a regressor.
    res_scale: of the residual blocks; like the interval not stored in a state dict. None takes what EDSR was
    published with: 0.1 with 256 features, else 1 (Lim et al. 2017, section 3.3).

    All else is read off shapes, and rgb_range off sub_mean's bias (1.0 where there is none). Raises
    ValueError that names the key, what was expected and what came.
    """
    if "head.0.weight" in state:
        if any(name.startswith(("sub_mean.", "add_mean.")) for name in state):
            return _build(state, str, _rgb_range(state), exit_interval, res_scale)
        return _build({**state, **_mean_shift(0.0)}, str, 1.0, exit_interval, res_scale)
    if "conv_first.weight" in state:
        model = _build({**state, **_mean_shift(1.0)}, _basicsr_name, 1.0, exit_interval, res_scale)
        with torch.no_grad():
            model.get_parameter("head.0.weight").mul_(IMG_RANGE)
            model.get_parameter("tail.1.weight").div_(IMG_RANGE)
            model.get_parameter("tail.1.bias").div_(IMG_RANGE)
        return model
    first = next(iter(state), "nothing")
    raise ValueError(
        f"state: expected the key head.0.weight (EDSR-PyTorch) or conv_first.weight (BasicSR), got {first}"
    )


def _build(
    state: Mapping[str, Tensor],
    rename: Callable[[str], str],
    rgb_range: float,
    exit_interval: int | None,
    res_scale: float | None,
) -> EDSR:
    """An EDSR of the sizes found in `state`, filled from it; `rename` gives the key there of a name of ours."""
    if "regressor.2.weight" in state and exit_interval is None:
        raise ValueError("exit_interval: expected the blocks between exits, as regressor.2.weight is there, got None")
    n_feats = _conv_shape(state, rename("head.0.weight"))[0]
    if res_scale is None:
        res_scale = 0.1 if n_feats == 256 else 1.0
    model = EDSR(
        scale=_scale(state, rename),
        n_resblocks=_count(state, rename),
        n_feats=n_feats,
        exit_interval=exit_interval,
        res_scale=res_scale,
        rgb_range=rgb_range,
    )
    used = set()
    for name, ours in model.state_dict().items():
        key = rename(name)
        ours.copy_(_tensor(state, key, tuple(ours.shape)))
        used.add(key)
    for key in state:
        if key not in used:
            raise ValueError(f"{key}: expected no such key in an EDSR of {model.config['n_resblocks']} blocks, got one")
    return model.eval()


def _mean_shift(rgb_range: float) -> dict[str, Tensor]:
    shifts = {"sub_mean": MeanShift(rgb_range, -1), "add_mean": MeanShift(rgb_range, 1)}
    return {f"{name}.{key}": value for name, shift in shifts.items() for key, value in shift.state_dict().items()}


def _basicsr_name(name: str) -> str:
    for pattern, replacement in BASICSR:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _tensor(state: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    value = state.get(key)
    if not isinstance(value, Tensor):
        raise ValueError(f"{key}: expected a tensor {list(shape)}, got {_what(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{key}: expected {list(shape)}, got {list(value.shape)}")
    return value


def _what(value: object) -> str:
    return "no such key" if value is None else type(value).__name__


def _conv_shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    value = state.get(key)
    if not isinstance(value, Tensor) or value.ndim != 4 or 0 in value.shape:
        got = list(value.shape) if isinstance(value, Tensor) else _what(value)
        raise ValueError(f"{key}: expected the weight of a convolution, [out, in, k, k], got {got}")
    return tuple(value.shape)


def _count(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> int:
    """Residual blocks, numbered from 0 without a gap."""
    count = 0
    while rename(f"body.{count}.body.0.weight") in state:
        count += 1
    if count == 0:
        raise ValueError(f"{rename('body.0.body.0.weight')}: expected the first residual block, got no such key")
    return count


def _scale(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> int:
    """Product of the upsampler's steps, convolutions from C to 4 C or 9 C at its even positions."""
    scale, position = 1, 0
    while (key := rename(f"tail.0.{position}.weight")) in state:
        out_channels, in_channels = _conv_shape(state, key)[:2]
        factor = {4: 2, 9: 3}.get(out_channels // in_channels)
        if factor is None or out_channels % in_channels:
            raise ValueError(
                f"{key}: expected 4 or 9 times as many channels out as in, got {out_channels}, {in_channels}"
            )
        scale *= factor
        position += 2
    return scale


def _rgb_range(state: Mapping[str, Tensor]) -> float:
    bias = _tensor(state, "sub_mean.bias", (3,)).double()
    ratios = -bias / torch.tensor(RGB_MEAN, dtype=torch.float64)
    rgb_range = float(ratios.mean())
    if not (rgb_range > 0 and torch.allclose(ratios, ratios.mean(), rtol=1e-3)):
        raise ValueError(f"sub_mean.bias: expected a multiple of -{list(RGB_MEAN)}, got {bias.tolist()}")
    return round(rgb_range, 3)
