"""Backends and the registry that chooses between them.

A backend is a module (one folder) with the functions of the `Backend` protocol. The device, the program and the user's
wish decide which backend runs. If the backend that the user asks for by name cannot run, an error says why.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import TYPE_CHECKING, cast

import torch

from ape_kernels.backends.protocol import Backend
from ape_kernels.geometry import folded_geometry
from ape_kernels.program import PatchProgram
from ape_kernels.verify import auto
from ape_kernels.verify.task import IMAGES, PATCHES

# The order of preference where nothing is verified: on the CPU, and on a GPU with APE_AUTO=trust. On an H200 and for
# EDSR 16x64, cuda is 4.7 times and triton 2.2 times as fast as the torch backend. For EDSR 32x256 both are half as fast
# as plain PyTorch (bench/results/h200). triton must come after torch, because its interpreter runs on CPUs too.
ORDER = ("cpu", "cuda", "torch", "triton")
VERIFIED = "cuda"  # the kind of device on which "auto" follows a verification


class BackendUnavailable(RuntimeError):
    """A backend cannot run. The message gives the reason and, for a named backend, the backends that can run."""


if TYPE_CHECKING:  # pyright checks that each folder fulfils the protocol
    from ape_kernels.backends import cpu, cuda, triton
    from ape_kernels.backends import torch as torch_backend

    _HELD: tuple[Backend, ...] = (cpu, torch_backend, cuda, triton)


@cache
def get_backend(name: str) -> Backend:
    """The backend with this name. Raises ValueError for an unknown name."""
    if name not in ORDER:
        raise ValueError(f"backend: expected auto, {', '.join(ORDER)}, got {name!r}")
    return cast(Backend, importlib.import_module(_module(name)))


def choose(wish: str, program: PatchProgram, device: torch.device, dtype: torch.dtype, patch_size: int) -> str:
    """Name of the backend that runs `program`.

    wish: a name, or "auto". "auto" takes the backend that the environment variable APE_BACKEND names. Without this
    variable it takes the first backend that can run on the CPU, and on a GPU the fastest one that a verification there
    has found right (`ape_kernels.verify`); the call may wait for this verification.
    patch_size: side of a patch of the image, in low-resolution pixels.

    Raises BackendUnavailable when the named backend, or every backend, cannot run. Raises ValueError for an unknown
    name and for an unknown value of APE_AUTO.
    """
    wish = os.environ.get("APE_BACKEND", "auto") if wish == "auto" else wish
    if wish == "auto" and (first := _first(program, device, dtype, PATCHES)) is not None:
        return first
    able, reasons = modules_able(program, device, dtype)
    if wish == "auto":
        return _fastest(able, reasons, program, device, dtype, patch_size)
    get_backend(wish)
    if wish in reasons:
        raise BackendUnavailable(f"backend: {wish} cannot run: {reasons[wish]}; able: {', '.join(able) or 'none'}")
    return wish


def choose_for_images(
    wish: str, program: PatchProgram, device: torch.device, dtype: torch.dtype, patch_size: int
) -> str:
    """Name of the backend that runs `program` on shared feature maps, which must pack it for that.

    As `choose`. But if a named backend runs only patches, the choice is that of "auto".
    patch_size: sides of the cells.
    """
    wish = os.environ.get("APE_BACKEND", "auto") if wish == "auto" else wish
    if wish == "auto" and (first := _first(program, device, dtype, IMAGES)) is not None:
        return first
    able, reasons = modules_able(program, device, dtype, IMAGES)
    if wish != "auto":
        choose(wish, program, device, dtype, patch_size)  # raises for one that cannot run at all
    if wish in able:
        return wish
    return _fastest(able, reasons, program, device, dtype, patch_size, IMAGES)


def _first(program: PatchProgram, device: torch.device, dtype: torch.dtype, operation: str) -> str | None:
    """The first backend that can run, where that is the choice; those after it are not imported (Triton: 0.1 s)."""
    auto.mode()  # raises for one that is none
    if device.type == VERIFIED:
        return None
    return next((name for name in ORDER if _reason(name, program, device, dtype, operation) is None), None)


def _fastest(
    able: dict[str, str],
    reasons: dict[str, str],
    program: PatchProgram,
    device: torch.device,
    dtype: torch.dtype,
    patch_size: int,
    operation: str = PATCHES,
) -> str:
    mode = auto.mode()
    if not able:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        what = "this network" if operation == PATCHES else "this network on shared feature maps"
        raise BackendUnavailable(f"backend: none can run {what} on {device} in {dtype}: {why}")
    if device.type != VERIFIED or mode == "trust" or len(able) == 1:
        return next(iter(able))
    if mode == "off":
        return auto.FALLBACK
    side = folded_geometry(patch_size, 0, program.fold)[0]
    return auto.fastest(able, program, device, dtype, side, operation=operation)


def modules_able(
    program: PatchProgram, device: torch.device, dtype: torch.dtype, operation: str = PATCHES
) -> tuple[dict[str, str], dict[str, str]]:
    """Two dicts by backend name, in `ORDER`: the modules of those that can run `program`, and why the others cannot.

    operation: "patches", or "images" on shared feature maps.
    """
    reasons = {name: _reason(name, program, device, dtype, operation) for name in ORDER}
    able = {name: _module(name) for name, reason in reasons.items() if reason is None}
    return able, {name: reason for name, reason in reasons.items() if reason is not None}


def choose_for_patches(wish: str, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the backend that splits and merges: `wish` if it can, else the first one in `ORDER` that can.

    Raises BackendUnavailable when there is none.
    """
    for name in (wish, *ORDER):
        backend = get_backend(name)
        if backend.unavailable() is None and backend.supports_patches(device, dtype) is None:
            return name
    raise BackendUnavailable(f"backend: none can split images of {dtype} on {device}")


def _module(name: str) -> str:
    return f"ape_kernels.backends.{name}"


def _reason(name: str, program: PatchProgram, device: torch.device, dtype: torch.dtype, operation: str) -> str | None:
    backend = get_backend(name)
    reason = backend.unavailable() or backend.supports(program, device, dtype)
    if reason is None and operation == IMAGES:
        return backend.supports_images(program, device, dtype)
    return reason
