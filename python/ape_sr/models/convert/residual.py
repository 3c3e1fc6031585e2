"""EDSR and RCAN, named as by EDSR-PyTorch and the APE authors, or as by BasicSR.

Those of BasicSR read images from 0 to 1 and multiply them by 255: this is folded into the first and the last weights.
"""

from __future__ import annotations

import re

import torch

from ape_sr.models.convert.reading import (
    Network,
    Rename,
    State,
    Unsaid,
    count,
    filled,
    interval,
    mean_shift,
    sizes,
    upsampler_scale,
    with_mean_shift,
)
from ape_sr.models.edsr import EDSR
from ape_sr.models.rcan import RCAN

IMG_RANGE = 255.0  # the default of BasicSR, with which its weights are published
# our name -> that of BasicSR; only the closing convolution is an entry of `body` without a body of its own
FRAME = (
    (r"head\.0\.(\w+)", r"conv_first.\1"),
    (r"body\.\d+\.(weight|bias)", r"conv_after_body.\1"),
    (r"tail\.0\.(\d+)\.(\w+)", r"upsample.\1.\2"),
    (r"tail\.1\.(\w+)", r"conv_last.\1"),
)
BLOCKS = (
    (r"body\.(\d+)\.body\.0\.(\w+)", r"body.\1.conv1.\2"),
    (r"body\.(\d+)\.body\.2\.(\w+)", r"body.\1.conv2.\2"),
)
GROUPS = (
    (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.(\w+)", r"body.\1.residual_group.\2.rcab.3.attention.1.\3"),
    (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.(\w+)", r"body.\1.residual_group.\2.rcab.3.attention.3.\3"),
    (r"body\.(\d+)\.body\.(\d+)\.body\.(\d)\.(\w+)", r"body.\1.residual_group.\2.rcab.\3.\4"),
    (r"body\.(\d+)\.body\.\d+\.(weight|bias)", r"body.\1.conv.\2"),
)


def is_edsr(state: State) -> bool:
    """Whether these are the keys of an EDSR, in one of the two namings."""
    return "head.0.weight" in state or (
        "conv_first.weight" in state and "body.0.conv1.weight" in state and "upconv1.weight" not in state
    )


def is_rcan(state: State) -> bool:
    """Whether these are the keys of an RCAN, in one of the two namings."""
    return any(".conv_du." in key or ".rcab." in key for key in state)


def edsr(state: State, unsaid: Unsaid) -> EDSR:
    """The EDSR that `state` was saved from."""
    naming = _naming(state, FRAME + BLOCKS)
    n_feats = sizes(state, naming("head.0.weight"))[0]
    res_scale = unsaid.res_scale
    if res_scale is None:
        res_scale = 0.1 if n_feats == 256 else 1.0  # what it was published with (Lim et al. 2017, section 3.3)
    model = EDSR(
        scale=upsampler_scale(state, lambda i: naming(f"tail.0.{i}.weight")),
        n_resblocks=count(state, lambda i: naming(f"body.{i}.body.0.weight"), "residual block"),
        n_feats=n_feats,
        exit_interval=interval(state, unsaid),
        res_scale=res_scale,
        rgb_range=with_mean_shift(state)[1],
    )
    return _filled(model, state, naming)


def rcan(state: State, unsaid: Unsaid) -> RCAN:
    """The RCAN that `state` was saved from."""
    naming = _naming(state, GROUPS + FRAME)
    n_feats = sizes(state, naming("head.0.weight"))[0]
    hidden = sizes(state, naming("body.0.body.0.body.3.conv_du.0.weight"))[0]
    model = RCAN(
        scale=upsampler_scale(state, lambda i: naming(f"tail.0.{i}.weight")),
        n_resgroups=count(state, lambda i: naming(f"body.{i}.body.0.body.0.weight"), "residual group"),
        n_resblocks=count(state, lambda i: naming(f"body.0.body.{i}.body.0.weight"), "residual block"),
        n_feats=n_feats,
        reduction=n_feats // hidden,
        exit_interval=interval(state, unsaid),
        rgb_range=with_mean_shift(state)[1],
    )
    return _filled(model, state, naming)


def _naming(state: State, basicsr: tuple[tuple[str, str], ...]) -> Rename:
    """The key for a name of ours: the name itself, or what the first pattern of BasicSR that fits makes of it."""

    def rename(name: str) -> str:
        for pattern, replacement in basicsr:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return name

    return rename if "conv_first.weight" in state else str


def _filled(model: Network, state: State, naming: Rename) -> Network:
    if "conv_first.weight" not in state:
        return filled(model, with_mean_shift(state)[0])
    model = filled(model, {**state, **mean_shift(1.0)}, naming)
    with torch.no_grad():
        model.get_parameter("head.0.weight").mul_(IMG_RANGE)
        model.get_parameter("tail.1.weight").div_(IMG_RANGE)
        model.get_parameter("tail.1.bias").div_(IMG_RANGE)
    return model
