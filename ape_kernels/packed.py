"""Programs packed for a backend, and kept as long as the weights they were made from."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ape_kernels.adapters import to_program
from ape_kernels.backends import choose, choose_for_images, get_backend
from ape_kernels.brief import brief_repr
from ape_kernels.geometry import PATCH_SIZE
from ape_kernels.plan.fit import fingerprint_of
from ape_kernels.program import PatchProgram
from ape_kernels.sharing import sharing_of, why_not_shared
from ape_kernels.table import PackedProgram

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BITS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64, 16: ctypes.c_uint64}


class Wish(NamedTuple):
    """What a program is packed for.

    backend: a name, or "auto". dtype: of the matrix products' operands. None: the model's, or float32 where the
    kernels do not compute in that (float64, and float16 on a CPU). patch_size: of the patches, in low-resolution
    pixels. images: for images on shared feature maps, whose cells are `patch_size` pixels, and
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
        """The shape of the pictures that `program` makes."""
        return cls(program.upscale, program.out_channels, program.fold)

    @property
    def scale(self) -> int:
        """The factor from the image's pixels to the picture's."""
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

    __repr__ = brief_repr

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
    parameter = next(model.parameters())
    wish = wish or Wish()
    return _pack(to_program(model), parameter.device, wish.dtype or _kernel_dtype(parameter), wish, ())


def _kernel_dtype(weight: Tensor) -> torch.dtype:
    """What kernels compute in for weights like this one."""
    if weight.dtype == torch.float64 or (weight.dtype == torch.float16 and weight.device.type == "cpu"):
        return torch.float32
    return weight.dtype


def _pack(
    program: PatchProgram, device: torch.device, dtype: torch.dtype, wish: Wish, others: Iterable[Packed]
) -> Packed:
    """Pack `program`. others: what was packed of it for this device; its tensors serve if backend and dtype agree."""
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
        self._stamp = _Stamp(model)
        self._packed: dict[Any, Packed] = {}  # of this program, by what was asked for
        self._latest: dict[bool, Packed] = {}  # for patches and for images
        self._fingerprint: str | None = None  # "" in half precision

    def latest(self, images: bool) -> Packed:
        """What was packed last, for images or for patches, whatever has changed since: tracing cannot pack.

        Raises RuntimeError before anything was.
        """
        if images not in self._latest:
            raise RuntimeError("model: expected to be packed before it is traced; call it once")
        return self._latest[images]

    def program(self) -> PatchProgram:
        """The program of the model as it is now."""
        with self._lock:
            return self._current_program()

    def get(self, wish: Wish, device: torch.device | None = None) -> Packed:
        """As `pack`, of the model as it is now, for its device or another one.

        Raises ValueError for another device where some steps are PyTorch modules, which are on the model's.
        """
        key = (wish, device, os.environ.get("APE_BACKEND"), os.environ.get("APE_AUTO"))
        with self._lock:
            program = self._current_program()
            if key not in self._packed:
                weight = next(self._model.parameters())
                place = weight.device if device is None else device
                if place != weight.device and program.opaque:
                    raise ValueError(
                        f"model: expected on {place}, but its modules ({program.opaque}) are on {weight.device}; "
                        "nn.DataParallel cannot run this network, use DistributedDataParallel"
                    )
                others = [packed for packed in self._packed.values() if packed.weights.device == place]
                self._packed[key] = _pack(program, place, wish.dtype or _kernel_dtype(weight), wish, others)
            if device is None:
                self._latest[wish.images] = self._packed[key]
            return self._packed[key]

    def fingerprint(self) -> str:
        """`fingerprint_of` the weights that were packed last; "" in half precision: they are not what they were."""
        with self._lock:
            if self._fingerprint is None:
                halved = any(t.is_floating_point() and t.dtype.itemsize < 4 for t in _tensors(self._model))
                self._fingerprint = "" if halved else fingerprint_of(self._model)
            return self._fingerprint

    def _current_program(self) -> PatchProgram:
        if not self._stamp.holds(self._model):
            stamp = _Stamp(self._model)  # first: what changes meanwhile shows at the next call
            self._program, self._stamp = to_program(self._model), stamp
            self._packed.clear()
            self._fingerprint = None
        return self._program


class _Stamp:
    """What a model's weights were when they were packed: storages, versions, and on a CPU the first values."""

    def __init__(self, model: nn.Module) -> None:
        tensors = _tensors(model)
        self._places = [_place(t) for t in tensors]
        # made once, as long as the storages stay; reading them then takes a tenth of an operation's time in all
        self._readers = [_reader(t) for t in tensors if t.is_cpu and t.data_ptr()]
        self._first = [reader.value for reader in self._readers]

    def holds(self, model: nn.Module) -> bool:
        """Whether the weights are what they were.

        A change shows when a weight has another storage or, by an in-place operation, another version. Tensors made in
        inference mode and writes through ``.data`` have no versions: for those a new storage shows, and on a CPU
        another first value, which is read past PyTorch.
        """
        if [_place(t) for t in _tensors(model)] != self._places:  # so the readers' memory is still there
            return False
        return [reader.value for reader in self._readers] == self._first


def _place(tensor: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    try:
        version = tensor._version
    except RuntimeError:  # made in inference mode
        version = 0
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def _reader(tensor: Tensor) -> Any:
    """Reads the bits of the first value."""
    return _BITS[tensor.element_size()].from_address(tensor.data_ptr())


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
