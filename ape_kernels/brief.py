"""Values in a line: of tensors and arrays their dtype and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn


def brief(value: Any) -> str:
    """As `repr`, but of tensors and arrays dtype, shape and device, and of a module its class."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}@{value.device}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, tuple):
        name = "" if type(value) is tuple else type(value).__name__
        return f"{name}({', '.join(map(brief, value))})"
    return repr(value)


def brief_repr(self: Any) -> str:
    """To be the `__repr__` of a dataclass or a named tuple: its fields, each `brief`."""
    names = getattr(self, "_fields", None) or self.__dataclass_fields__
    return f"{type(self).__name__}({', '.join(f'{name}={brief(getattr(self, name))}' for name in names)})"
