"""RRDBNet, named as by the APE authors, by BasicSR, by ESRGAN, KAIR and BSRGAN, and by the first ESRGAN."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ape_sr.models.convert.reading import State, Unsaid, count, filled, interval, sizes
from ape_sr.models.rrdb import RRDBNet


@dataclass(frozen=True)
class Naming:
    """Keys of a naming, without ".weight" and ".bias".

    closing: with a place for the number of blocks. dense: with places for the numbers of the block, the dense block and
    the convolution. doubling: with a place for its number, from 1 on. The keys of the first ESRGAN count layers: see
    `_first`.
    """

    head: str
    closing: str
    dense: str
    doubling: str
    high: str
    last: str

    def key(self, name: str, blocks: int) -> str:
        """The key for a name of ours, in a network of so many blocks."""
        name, _, kind = name.rpartition(".")
        if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", name):
            return f"{self.dense.format(*match.groups())}.{kind}"
        if match := re.fullmatch(r"tail\.conv_up(\d)", name):
            return f"{self.doubling.format(match[1])}.{kind}"
        fixed = {"head.0": self.head, "tail.conv_hr": self.high, "tail.conv_last": self.last}
        return f"{fixed.get(name, self.closing.format(blocks))}.{kind}" if name != "regressor.2" else f"{name}.{kind}"


AUTHORS = Naming("head.0", "body.{}", "body.{}.rdb{}.conv{}", "tail.conv_up{}", "tail.conv_hr", "tail.conv_last")
BASICSR = Naming("conv_first", "conv_body", "body.{}.rdb{}.conv{}", "conv_up{}", "conv_hr", "conv_last")
FOLDS = {3: 1, 12: 2, 48: 4}  # channels of the input -> side of the squares of pixels that are folded into them
TRUNK = Naming("conv_first", "trunk_conv", "RRDB_trunk.{}.RDB{}.conv{}", "upconv{}", "HRconv", "conv_last")


def is_rrdb(state: State) -> bool:
    """Whether these are the keys of an RRDBNet, in one of the four namings."""
    return "model.0.weight" in state or any(re.search(r"\.(rdb|RDB)1\.conv", key) for key in state)


def rrdb(state: State, unsaid: Unsaid) -> RRDBNet:
    """The RRDBNet that `state` was saved from."""
    if "model.0.weight" in state:
        state = _first(state)
    naming = TRUNK if any(key.startswith("RRDB_trunk.") for key in state) else BASICSR
    naming = AUTHORS if "head.0.weight" in state else naming
    blocks = count(state, lambda i: f"{naming.dense.format(i, 1, 1)}.weight", "dense block")
    doublings = 0
    while f"{naming.doubling.format(doublings + 1)}.weight" in state:
        doublings += 1
    n_feats, in_channels = sizes(state, f"{naming.head}.weight")[:2]
    if in_channels not in FOLDS:
        raise ValueError(f"{naming.head}.weight: expected 3, 12 or 48 channels in, got {in_channels}")
    fold = FOLDS[in_channels]
    model = RRDBNet(
        scale=2**doublings // fold,
        n_resblocks=blocks,
        n_feats=n_feats,
        n_growth=sizes(state, f"{naming.dense.format(0, 1, 1)}.weight")[0],
        exit_interval=interval(state, unsaid),
        fold=fold,
    )
    return filled(model, state, lambda name: naming.key(name, blocks))


def _first(state: State) -> State:
    """The keys of the first ESRGAN, which count layers, as those of BasicSR."""
    blocks = count(state, lambda i: f"model.1.sub.{i}.RDB1.conv1.0.weight", "dense block")
    top = [int(match[1]) for key in state if (match := re.fullmatch(r"model\.(\d+)\.weight", key))]
    last = max(top)  # a doubling is an upsampling, a convolution and an activation
    doublings = (last - 4) // 3
    names = {"model.0": "conv_first", f"model.1.sub.{blocks}": "conv_body"}
    names |= {f"model.{3 * i}": f"conv_up{i}" for i in range(1, doublings + 1)}
    names |= {f"model.{last - 2}": "conv_hr", f"model.{last}": "conv_last"}

    def renamed(key: str) -> str:
        path, _, kind = key.rpartition(".")
        if match := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", path):
            return f"body.{match[1]}.rdb{match[2]}.conv{match[3]}.{kind}"
        return f"{names.get(path, path)}.{kind}"

    return {renamed(key): value for key, value in state.items()}
