"""VDSR, ECBSR and SRVGGNetCompact.

VDSR as by EDSR-PyTorch and the APE authors, SRVGGNetCompact as by BasicSR and Real-ESRGAN, ECBSR as by the APE authors.
The ECBSR of BasicSR, and that of its own authors, adds the input upsampled to the nearest pixel, as SRVGGNetCompact
does. It becomes an SRVGGNetCompact: each block folds to one convolution. Blocks are taken to add no input (with_idt),
as in the published ones.
"""

from __future__ import annotations

import re
from itertools import chain

import torch

from ape_kernels.adapters.ecbsr import fold_ecb
from ape_sr.models.compact import SRVGGNetCompact
from ape_sr.models.convert.reading import (
    State,
    Unsaid,
    count,
    filled,
    interval,
    shuffle_scale,
    sizes,
    tensor,
    with_mean_shift,
)
from ape_sr.models.ecbsr import ECB, ECBSR
from ape_sr.models.vdsr import VDSR


def is_vdsr(state: State) -> bool:
    """Whether these are the keys of a VDSR."""
    return "body.0.0.weight" in state and "head.0.weight" not in state


def vdsr(state: State, unsaid: Unsaid) -> VDSR:
    """The VDSR that `state` was saved from. Nothing in it tells the scale."""
    if unsaid.scale is None:
        raise ValueError("scale: expected the upscaling factor (-s), which the file of a VDSR does not hold, got None")
    theirs, rgb_range = with_mean_shift(state)
    if "body.0.0.bias" not in state:  # the network of the paper has none
        weights = [(key, value) for key, value in state.items() if re.fullmatch(r"body\.\d+\.0\.weight", key)]
        theirs = {**theirs, **{f"{key[: -len('weight')]}bias": value.new_zeros(len(value)) for key, value in weights}}
    model = VDSR(
        scale=unsaid.scale,
        n_resblocks=count(state, lambda i: f"body.{i}.0.weight", "convolution"),
        n_feats=sizes(state, "body.0.0.weight")[0],
        exit_interval=interval(state, unsaid),
        rgb_range=rgb_range,
    )
    return filled(model, theirs)


def is_ecbsr(state: State) -> bool:
    """Whether these are the keys of an ECBSR, in one of the two namings."""
    return any(".conv1x1_sbx." in key for key in state)


def ecbsr(state: State, unsaid: Unsaid) -> ECBSR | SRVGGNetCompact:
    """The ECBSR that `state` was saved from, or the SRVGGNetCompact to which it folds."""
    if "backbone.0.conv3x3.weight" in state:
        return compact(_folded(state), unsaid)
    blocks = count(state, lambda i: f"body.{i}.conv3x3.weight", "block") - 1
    model = ECBSR(
        scale=shuffle_scale(state, f"body.{blocks}.conv3x3.weight"),
        n_blocks=blocks,
        n_feats=sizes(state, "head.0.conv3x3.weight")[0],
        exit_interval=interval(state, unsaid),
    )
    return filled(model, state)


def is_compact(state: State) -> bool:
    """Whether these are the keys of an SRVGGNetCompact."""
    return "body.0.weight" in state and state["body.0.weight"].ndim == 4 and "conv_first.weight" not in state


def compact(state: State, unsaid: Unsaid) -> SRVGGNetCompact:
    """The SRVGGNetCompact that `state` was saved from."""
    convs = count(state, lambda i: f"body.{2 * i}.weight", "convolution")
    if convs < 3:
        raise ValueError(f"body.{2 * convs}.weight: expected at least 3 convolutions, got {convs}")
    features = sizes(state, "body.0.weight")[0]
    for i in range(convs - 1):
        tensor(state, f"body.{2 * i + 1}.weight", (features,))  # of a PReLU; other activations leave nothing in a file
    model = SRVGGNetCompact(
        scale=shuffle_scale(state, f"body.{2 * convs - 2}.weight"),
        n_resblocks=convs - 2,
        n_feats=features,
        exit_interval=interval(state, unsaid),
    )
    return filled(model, state)


def _folded(state: State) -> State:
    """The ECBSR of BasicSR, folded, under the keys of SRVGGNetCompact."""
    blocks = count(state, lambda i: f"backbone.{i}.conv3x3.weight", "block")
    made: dict[str, torch.Tensor] = {}
    for i in range(blocks):
        path = f"backbone.{i}."
        own = {key.removeprefix(path): value for key, value in state.items() if key.startswith(path)}
        out_channels, in_channels = sizes(state, f"{path}conv3x3.weight")[:2]
        ecb = ECB(in_channels, out_channels, with_idt=False, linear=i == blocks - 1)
        for name, ours in chain(ecb.named_parameters(), ecb.named_buffers()):
            ours.data.copy_(tensor(state, f"{path}{name}", tuple(ours.shape)))
        extra = set(own) - set(ecb.state_dict())
        if extra:
            raise ValueError(f"{path}{min(extra)}: expected no such key, got one")
        weight, bias = fold_ecb(ecb, path[:-1])
        made |= {f"body.{2 * i}.weight": weight.float(), f"body.{2 * i}.bias": bias.float()}
        if "act.weight" in own:
            made[f"body.{2 * i + 1}.weight"] = own["act.weight"]
    return made
