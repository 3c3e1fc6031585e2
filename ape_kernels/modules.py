"""Numbers for the modules of `Module` steps, so that an operation's arguments stay tensors and numbers.

In one process a module keeps its number as long as it lives. The first number is random. A table from another process,
such as the table of an exported program, therefore finds no module instead of a wrong one.
"""

from __future__ import annotations

import itertools
import os
import weakref

from torch import nn

_modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_next = itertools.count(int.from_bytes(os.urandom(3), "little") << 6)  # stays within int32


def register(module: nn.Module) -> int:
    """The number of `module`, which gets one if it has none yet."""
    if module not in _numbers:
        _numbers[module] = next(_next)
        _modules[_numbers[module]] = module
    return _numbers[module]


def module(number: int) -> nn.Module:
    """The module with this number. Raises ValueError when there is no such module in this process (any longer)."""
    found = _modules.get(number)
    if found is None:
        raise ValueError(
            f"table: expected modules of this process, got number {number}: a network with PyTorch modules inside "
            "(SwinIR) cannot be exported to another process, nor outlive its APEForward"
        )
    return found
