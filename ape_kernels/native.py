"""The native core `ape_kernels._C`: importing this module never fails, using a missing core says why."""

from __future__ import annotations

from types import ModuleType

_core: ModuleType | None
_reason: str | None

try:
    from ape_kernels import _C as _core
except ImportError as error:
    _core, _reason = None, f"the native core is not built or does not load ({error}); run: pip install -e ."
else:
    _reason = None


def missing() -> str | None:
    """None if the native core is there, else the reason and the command that builds it."""
    return _reason


def core() -> ModuleType:
    """The native core; RuntimeError with the reason when it is missing."""
    if _core is None:
        raise RuntimeError(_reason)
    return _core
