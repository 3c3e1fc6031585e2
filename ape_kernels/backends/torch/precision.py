"""Convolutions in full float32 on a GPU, where PyTorch may take TF32."""

from __future__ import annotations

import threading
from typing import Any

import torch

from ape_kernels.precision import matmul_precision


class _ExactFloat32:
    """In this context, float32 convolutions are computed in float32 and not in TF32.

    TF32 is cuDNN's default and is wrong by 1e-3 of the range of values. Who allows TF32 in matrix products
    (`matmul_precision`) allows it here, unless `always` is set. The setting belongs to the whole process: the first
    thread that enters changes it, and the last one that leaves restores it.
    """

    _lock = threading.Lock()
    _inside = 0
    _recurrent: str | None = None  # the setting of RNNs, to be restored; None if nothing was changed

    def __init__(self, always: bool) -> None:
        self._always = always

    def __enter__(self) -> None:
        cudnn: Any = torch.backends.cudnn  # its type declarations lack conv and rnn
        shared = _ExactFloat32
        with shared._lock:
            shared._inside += 1
            wanted = self._always or matmul_precision() == "highest"
            if wanted and shared._recurrent is None and cudnn.conv.fp32_precision == "tf32":
                shared._recurrent = cudnn.rnn.fp32_precision
                cudnn.allow_tf32 = False  # for convolutions and RNNs: PyTorch raises where the two differ

    def __exit__(self, *_: object) -> None:
        cudnn: Any = torch.backends.cudnn  # its type declarations lack conv and rnn
        shared = _ExactFloat32
        with shared._lock:
            shared._inside -= 1
            if shared._inside == 0 and shared._recurrent is not None:
                cudnn.allow_tf32 = True
                cudnn.rnn.fp32_precision = shared._recurrent
                shared._recurrent = None


EXACT_FLOAT32 = _ExactFloat32(always=False)
ALWAYS_EXACT_FLOAT32 = _ExactFloat32(always=True)
