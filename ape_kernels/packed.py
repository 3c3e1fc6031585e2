"""Programs packed for a backend, and kept as long as the weights they were made from."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ape_kernels.adapters import to_program
from ape_kernels.backends import choose, choose_for_images, get_backend
from ape_kernels.geometry import PATCH_SIZE
from ape_kernels.program import PatchProgram
from ape_kernels.sharing import sharing_of, why_not_shared
from ape_kernels.table import PackedProgram

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Wish(NamedTuple):
    """What a program is packed for.

    backend: a name, or "auto". dtype: of the matrix products' operands, None for the model's. patch_size: of the
    patches, low-resolution pixels. images: for images on shared feature maps, whose cells are `patch_size` pixels, and
    not for patches.
    """

    backend: str = "auto"
    dtype: torch.dtype | None = None
    patch_size: int = PATCH_SIZE
    images: bool = False


class PictureShape(NamedTuple):
    """How a picture follows from its image.

    upscale: from the pixels that the program reads to the picture's. out_channels: of the picture. fold: squares of
    fold x fold pixels of the image are the pixels that the program reads.
    """

    upscale: int
    out_channels: int
    fold: int

    @classmethod
    def of(cls, program: PatchProgram) -> PictureShape:
        """What `program` makes."""
        return cls(program.upscale, program.out_channels, program.fold)

    @property
    def scale(self) -> int:
        """From the image's pixels to the picture's."""
        return self.upscale // self.fold


@dataclass(frozen=True)
class Packed:
    """A program as one backend runs it; what the operations in `ape_kernels.ops` take is all here.

    backend: its name. dtype: of the matrix products' operands. tensors: table and weights in that backend's layout.
    shape: of the pictures. sharing: how its steps run on whole images (`sharing_of`), None where they cannot.
    """

    program: PatchProgram
    backend: str
    dtype: torch.dtype
    tensors: PackedProgram
    shape: PictureShape
    sharing: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """int32 ``[rows, 16]``, on the host."""
        return self.tensors.table

    @property
    def weights(self) -> Tensor:
        """1-D, on the device of the model."""
        return self.tensors.weights


def pack(model: nn.Module, wish: Wish | None = None) -> Packed:
    """Pack a network as `APEForward` does.

    Raises NotRecognised for a network that no adapter knows, BackendUnavailable for a named backend that cannot run.
    """
    return _pack(to_program(model), next(model.parameters()), wish or Wish(), ())


def _pack(program: PatchProgram, like: Tensor, wish: Wish, others: Iterable[Packed]) -> Packed:
    """`program` for the device and, where none is wished for, the dtype of `like`.

    others: of the same program, whose tensors serve again where backend and dtype are the same.
    """
    device, dtype = like.device, wish.dtype or like.dtype
    chosen = choose_for_images if wish.images else choose
    backend = chosen(wish.backend, program, device, dtype, wish.patch_size)
    known = [other.tensors for other in others if (other.backend, other.dtype) == (backend, dtype)]
    with torch.no_grad():
        tensors = known[0] if known else get_backend(backend).pack(program, device, dtype)
    sharing = sharing_of(tensors.table) if why_not_shared(program) is None else None
    return Packed(program, backend, dtype, tensors, PictureShape.of(program), sharing)


class PackedModel:
    """A model's program, packed when it is asked for and again when weights, device, dtype or wish have changed.

    Safe to use from several threads. Holds the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._program = to_program(model)
        self._stamp = stamp_of(model)
        self._packed: dict[bool, tuple[Any, Packed]] = {}  # for patches and for images: what was wished for, and got

    def latest(self, images: bool) -> Packed:
        """What was packed last, for images or for patches, whatever has changed since: tracing cannot pack.

        Raises RuntimeError before anything was.
        """
        if images not in self._packed:
            raise RuntimeError("model: expected to be packed before it is traced; call it once")
        return self._packed[images][1]

    def program(self) -> PatchProgram:
        """Of the model as it is now."""
        with self._lock:
            return self._current_program()

    def get(self, wish: Wish) -> Packed:
        """As `pack`, of the model as it is now."""
        key = (wish, os.environ.get("APE_BACKEND"), os.environ.get("APE_AUTO"))
        with self._lock:
            program = self._current_program()
            known = self._packed.get(wish.images)
            if known is None or known[1].program is not program or known[0] != key:
                others = [packed for _, packed in self._packed.values() if packed.program is program]
                packed = _pack(program, next(self._model.parameters()), wish, others)
                self._packed[wish.images] = key, packed
            return self._packed[wish.images][1]

    def _current_program(self) -> PatchProgram:
        stamp = stamp_of(self._model)
        if stamp != self._stamp:
            self._program, self._stamp = to_program(self._model), stamp
        return self._program


def stamp_of(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a weight's storage or, by an in-place operation, its values do.

    Tensors made in inference mode do not count their changes: for those only a new storage shows.
    """
    tensors = _tensors(model)
    versions = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
    return tuple((t.data_ptr(), version, t.dtype, t.device) for t, version in zip(tensors, versions, strict=True))


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers. `parameters()` takes five times as long: 0.2 ms per call for EDSR 16x64."""
    found: list[Tensor] = []
    left: list[nn.Module | None] = [model]
    while left:
        if (module := left.pop()) is not None:
            own = (*module._parameters.values(), *module._buffers.values())  # pyright: ignore[reportPrivateUsage]
            found += [t for t in own if t is not None]
            left += module._modules.values()  # pyright: ignore[reportPrivateUsage]
    return found
