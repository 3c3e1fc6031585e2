"""What is known of a network from pictures it was shown: how far its exits, and interpolation, are from full depth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

MEASURE = 48  # low-resolution pixels of the cells on which fidelity is promised, whatever the cells decided on
VERSION = 1
FIRST, STEP, LEVELS = 20.0, 2.5, 25  # fidelities in dB for which `ExitFit.needed` is kept; between them it is linear
UNLIKE = 1000.0  # dB less for a cell unlike all that was fitted: it is the last that a budget lets go


class Predictions(NamedTuple):
    """Of one image batch, for all C candidates but full depth: interpolation, then exits 0 to C - 2.

    fidelity: float32 ``[B, R, K, C]``, dB, as expected. level: float32 ``[B, R, K, C]``, the highest fidelity in dB
    that can be asked for so that the candidate serves; below all that can be asked where no fitted cell is alike.
    """

    fidelity: Tensor
    level: Tensor


@dataclass(frozen=True)
class ExitFit:
    """How far the exits of one network, and interpolation, are from its full depth, told from statistics of a cell.

    Made by `fit_exits`. F statistics of a cell (`ape_kernels.ops.statistics`); C candidates: interpolation, then exits
    0 to C - 2. Full depth, exit C - 1, is what they are compared with.

    version: of this layout. fingerprint: of the weights, see `fingerprint_of`. scale: upscaling factor. stages: of the
    program, equal to C. cell: low-resolution pixels along the sides of the cells that are decided on. ring: as in
    `ape_kernels.backends.protocol.Depths`. value_range: what white is. default: fidelity in dB where none is asked for.
    mean, deviation: float32 ``[F]``, of the statistics fitted. low, high: float32 ``[F]``, their range.
    precision: float32 ``[F, F]``, inverse of their correlation. leverage: float32 ``[]``, the highest among them.
    quadratic: float32 ``[C, F + 1, F + 1]``: with z the standardised statistics and a 1, z' Q z is the fidelity in dB.
    kinds: float32 ``[k - 1]``, what separates the kinds of cells, see `kind_of`.
    needed: float32 ``[k, C, LEVELS]``: prediction in dB from which a candidate serves, by what is asked; ascending.
    tones: float32 ``[N, N, N, 3]`` or None, see `ape_kernels.backends.torch.interpolate`.
    """

    fingerprint: str
    scale: int
    stages: int
    cell: int
    value_range: float
    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    precision: Tensor
    leverage: Tensor
    quadratic: Tensor
    kinds: Tensor
    needed: Tensor
    tones: Tensor | None = None
    ring: int = 4
    default: float = 48.0  # a root mean square difference of one level of 8 bits
    version: int = VERSION

    def to(self, device: torch.device | str) -> ExitFit:
        """The same fit with its tensors on `device`; itself if they are there."""
        if self.mean.device == torch.device(device):
            return self
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def predict(self, statistics: Tensor) -> Predictions:
        """What is expected of each cell.

        statistics: float32 ``[B, R, K, F]``, of cells of `cell` pixels, on the device of the fit. Every value is
        computed by itself in a fixed order: it depends on neither batch nor threads.
        """
        z = (statistics - self.mean) / self.deviation
        leverage = torch.nn.functional.pad(self.precision, (0, 1, 0, 1))[None]
        forms = _quadratic(z, torch.cat([self.quadratic, leverage]))
        fidelity, leverage = forms[..., :-1], forms[..., -1]
        # the curve of what is needed is looked up backwards: which level is just met by the prediction
        needed = self.needed[torch.bucketize(_pooled(kind_of(statistics), self.cell), self.kinds)]  # [B, R, K, C, L]
        below = (needed <= fidelity[..., None]).sum(-1, keepdim=True)
        left = (below - 1).clamp(0, LEVELS - 2)
        low, high = needed.gather(-1, left)[..., 0], needed.gather(-1, left + 1)[..., 0]
        level = FIRST + STEP * (left[..., 0] + (fidelity - low) / (high - low))
        level = torch.where(below[..., 0] == 0, FIRST + (fidelity - low), level)
        level = torch.where(below[..., 0] == LEVELS, FIRST + STEP * (LEVELS - 1) + (fidelity - high), level)
        unlike = ((statistics < self.low) | (statistics > self.high)).any(-1) | (leverage > self.leverage)
        return Predictions(fidelity, torch.where(unlike[..., None], level - UNLIKE, level))

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file; `from_state` makes the fit again."""
        state = {}
        for name, value in vars(self).items():
            if isinstance(value, str):
                state[name] = torch.tensor(list(bytes.fromhex(value)), dtype=torch.uint8)
            elif value is not None:
                state[name] = value.cpu().contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ExitFit:
        """The fit that `state` was of. ValueError for a state of another version or with something missing."""
        version = int(state["version"]) if "version" in state else None
        if version != VERSION:
            raise ValueError(f"fit: expected version {VERSION}, got {version}")
        values: dict[str, object] = {}
        for field in fields(cls):
            tensor = state.get(field.name)
            if tensor is None and field.name != "tones":
                raise ValueError(f"fit: expected {field.name}, which is missing")
            if tensor is None or field.type in ("Tensor", "Tensor | None"):
                values[field.name] = tensor
            elif field.type == "str":
                values[field.name] = bytes(tensor.tolist()).hex()
            else:
                values[field.name] = tensor.item()
        return cls(**values)  # pyright: ignore[reportArgumentType] - by the annotations above


def kind_of(statistics: Tensor) -> Tensor:
    """``[..., F]`` to ``[...]``: how far a few pixels stand out; low for even texture, high for lone edges."""
    return statistics[..., 4] - statistics[..., 0]


def _pooled(kind: Tensor, cell: int) -> Tensor:
    """Means of ``[B, R, K]`` over the cells of MEASURE pixels that they are parts of."""
    parts = MEASURE // cell
    means = avg_pool2d(kind[:, None], parts, ceil_mode=True)[:, 0]
    whole = means.repeat_interleave(parts, 1).repeat_interleave(parts, 2)
    return whole[:, : kind.shape[1], : kind.shape[2]].contiguous()


def _quadratic(z: Tensor, forms: Tensor) -> Tensor:
    """z' Q z with z ``[..., F]`` and a 1 behind it, for forms Q ``[C, F + 1, F + 1]``: ``[..., C]``."""
    z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    rows = _sum_in_order(z[..., None, i, None] * forms[:, i] for i in range(z.shape[-1]))  # [..., C, F + 1]
    return _sum_in_order(rows[..., i] * z[..., None, i] for i in range(z.shape[-1]))


def _sum_in_order(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, one after the other: each element is rounded as it would be alone."""
    total = None
    for term in terms:
        total = term if total is None else total + term
    assert total is not None
    return total


def fingerprint_of(model: nn.Module) -> str:
    """Hexadecimal digest of the names, shapes and values (as float32) in the state dict of `model`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
