"""Numbers for the modules of `Module` steps, so that an operation's arguments stay tensors and numbers.

A module keeps its number as long as it lives, in this process. Numbers begin anywhere, so that a table from
another process, such as an exported program's, finds no module instead of a wrong one.
"""

from __future__ import annotations

import itertools
import os
import weakref

from torch import nn

_modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_next = itertools.count(int.from_bytes(os.urandom(3), "little") << 6)  # int32


def register(module: nn.Module) -> int:
    """The number of `module`."""
    if module not in _numbers:
        _numbers[module] = next(_next)
        _modules[_numbers[module]] = module
    return _numbers[module]


def module(number: int) -> nn.Module:
    """The module behind a number; ValueError once it is gone, or where it never was."""
    found = _modules.get(number)
    if found is None:
        raise ValueError(
            f"table: expected modules of this process, got number {number}: a network with PyTorch modules inside "
            "(SwinIR) cannot be exported to another process, nor outlive its APEForward"
        )
    return found
