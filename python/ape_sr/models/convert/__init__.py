"""Networks from bare state dicts as other projects publish them. One file per kind of family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ape_sr.models.base import ExitNetwork
from ape_sr.models.convert import chains, residual, rrdb, swinir
from ape_sr.models.convert.reading import State, Unsaid

__all__ = ["FAMILIES", "Family", "Unsaid", "family_of", "foreign_name", "from_state_dict"]


class Family(NamedTuple):
    """A family of networks.

    matches: whether a state dict has its keys. build: the network, or a ValueError that names the key.
    """

    name: str
    matches: Callable[[State], bool]
    build: Callable[[State, Unsaid], ExitNetwork]


FAMILIES = (  # in this order: an RCAN also has the keys of an EDSR, and an ECBSR those of a Compact
    Family("ECBSR", chains.is_ecbsr, chains.ecbsr),
    Family("RRDBNet", rrdb.is_rrdb, rrdb.rrdb),
    Family("SwinIR", swinir.is_swinir, swinir.swinir),
    Family("RCAN", residual.is_rcan, residual.rcan),
    Family("VDSR", chains.is_vdsr, chains.vdsr),
    Family("EDSR", residual.is_edsr, residual.edsr),
    Family("SRVGGNetCompact", chains.is_compact, chains.compact),
)

# networks of other families: a part of a key that no other network has
OTHERS = {
    ".overlap_attn.": "HAT",
    "before_RG.": "DAT",
    ".c1_r.": "SPAN",
    ".lk.": "PLKSR",
    ".residual_group.td": "ATD",
    ".swin1.": "DRCT",
    "unet1.": "Real-CUGAN",
    "RDBs.": "RDN",
    "feats.0.safm.": "SAFMN",
    "residual_layer.0.conv.": "VDSR of one channel",
    "upconv1.": "MSRResNet",
    "running_mean": "a network with batch norm",
}


def family_of(state: State) -> Family | None:
    """The family whose keys `state` has, or None."""
    return next((family for family in FAMILIES if family.matches(state)), None)


def foreign_name(state: State) -> str | None:
    """The name of a network that is none of `FAMILIES`, or None."""
    return next((name for part, name in OTHERS.items() if any(part in key for key in state)), None)


def from_state_dict(state: Mapping[str, Tensor], unsaid: Unsaid | None = None) -> ExitNetwork:
    """Build the network of `ape_sr.models` that computes what the network `state` was saved from computes.

    state: keys and shapes of one of `FAMILIES`, in the namings that its file lists. unsaid: what no state dict holds.
    The network is in evaluation mode. Its rgb_range is read from the bias of sub_mean (1.0 where there is none).

    Raises ValueError that names the family, the key, what was expected and what came.
    """
    unsaid = unsaid or Unsaid()
    family = family_of(state)
    if family is None:
        names = ", ".join(family.name for family in FAMILIES)
        got = foreign_name(state) or (f"the key {next(iter(state))}" if state else "nothing")
        raise ValueError(f"expected the keys of {names}, got {got}")
    if unsaid.res_scale is not None and family.name != "EDSR":
        raise ValueError(f"res_scale: expected with an EDSR alone, got {unsaid.res_scale} with {family.name}")
    try:
        return family.build(state, unsaid)
    except ValueError as error:
        raise ValueError(f"{family.name} found, but {error}") from None
