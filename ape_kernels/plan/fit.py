"""What is known of a network from pictures it was shown: how far its exits, and interpolation, are from full depth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ape_kernels.backends.protocol import FitTensors, Predictions
from ape_kernels.plan.tones import toned

MEASURE = 48  # low-resolution pixels of the cells on which fidelity is promised, whatever the cells decided on
VERSION = 1


@dataclass(frozen=True)
class ExitFit:
    """How far the exits of one network, and interpolation, are from its full depth, told from statistics of a cell.

    Made by `fit_exits`. F statistics of a cell (`ape_kernels.ops.statistics`); C candidates: interpolation, then exits
    0 to C - 2. Full depth, exit C - 1, is what they are compared with.

    version: of this layout. fingerprint: of the weights, see `fingerprint_of`. scale: upscaling factor. stages: of the
    program, equal to C. cell: low-resolution pixels along the sides of the cells that are decided on. ring: as in
    `ape_kernels.backends.protocol.Depths`. value_range: what white is. default: fidelity in dB where none is asked for.
    mean to needed: as in `ape_kernels.backends.protocol.FitTensors`.
    tones: float32 ``[N, N, N, 3]`` or None, see `ape_kernels.plan.tones.toned`.
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

    def __repr__(self) -> str:
        words = [
            f"x{self.scale}",
            f"{self.stages} stages",
            f"cells of {self.cell} pixels",
            f"{self.default:g} dB by default",
            f"white {self.value_range:g}",
            f"{'without' if self.tones is None else 'with'} tones",
            f"of weights {self.fingerprint[:8]}",
        ]
        return f"ExitFit({', '.join(words)})"

    def to(self, device: torch.device | str) -> ExitFit:
        """The same fit with its tensors on `device`; itself if they are there."""
        place = torch.device(device)
        if self.mean.device == place:
            return self
        tensors = {name: _on(value, place) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def predict(self, statistics: Tensor, backend: str = "torch") -> Predictions:
        """What is expected of each cell.

        statistics: float32 ``[B, R, K, F]``, of cells of `cell` pixels, on the device of the fit. backend: the one that
        computes. Every value is computed by itself in a fixed order: it depends on neither batch nor threads.
        """
        tensors = [getattr(self, name) for name in FitTensors._fields]
        return Predictions(*torch.ops.ape_kernels.predict(statistics, tensors, MEASURE // self.cell, backend))

    def colours(self, image: Tensor) -> Tensor:
        """What cells are interpolated from: the image ``[B, C, H, W]`` in the network's own tones."""
        return image if self.tones is None else toned(image, _on(self.tones, image.device), self.value_range)

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file; `from_state` makes the fit again."""
        state = {}
        for name, value in vars(self).items():
            if isinstance(value, str):
                state[name] = torch.tensor(list(bytes.fromhex(value)), dtype=torch.uint8, device="cpu")
            elif value is not None:
                state[name] = torch.as_tensor(value, device="cpu").contiguous()
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


_COPIES = WeakTensorKeyDictionary()  # of the tensors of fits, by device


def _on(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`. The copy is kept: a copy to a GPU makes the host wait, and cannot be captured in a graph."""
    if value.device == device or torch.compiler.is_compiling():
        return value.to(device)
    if (copies := _COPIES.get(value)) is None:
        copies = _COPIES[value] = {}
    if device not in copies:
        copies[device] = value.to(device)
    return copies[device]


def fingerprint_of(model: nn.Module) -> str:
    """Hexadecimal digest of the names, shapes and values (as float32) in the state dict of `model`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
