"""Numbers for the modules of `Module` steps, so that an operation's arguments stay tensors and numbers.

A module keeps its number as long as it lives, in this process.
"""

from __future__ import annotations

import itertools
import weakref

from torch import nn

_modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_next = itertools.count(1)


def register(module: nn.Module) -> int:
    """The number of `module`."""
    if module not in _numbers:
        _numbers[module] = next(_next)
        _modules[_numbers[module]] = module
    return _numbers[module]


def module(number: int) -> nn.Module:
    """The module behind a number; KeyError once it is gone."""
    return _modules[number]
