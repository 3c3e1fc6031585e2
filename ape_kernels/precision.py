"""The precision that the user allows for products of float32 matrices."""

from __future__ import annotations

import torch


def matmul_precision() -> str:
    """Either "high", where TF32 is allowed on a GPU, or "highest", whichever of PyTorch's settings says so.

    `torch.get_float32_matmul_precision` cannot be asked: it raises RuntimeError once the user has set
    ``torch.backends.cuda.matmul.fp32_precision = "tf32"``.
    """
    return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"
