"""Convolutions in full float32 on a GPU, where PyTorch may take TF32."""

from __future__ import annotations

import threading
from typing import Any

import torch

from ape_kernels.precision import matmul_precision


class _ExactFloat32:
    """In this context, float32 convolutions are computed in float32 and not in TF32.

    TF32 is cuDNN's default and is wrong by 1e-3 of the range of values.
    Who allows TF32 in matrix products (`matmul_precision`) allows it here. The setting belongs to the whole process:
    the first thread that enters changes it, and the last one that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._recurrent: str | None = None  # the setting of RNNs, to be restored; None if nothing was changed

    def __enter__(self) -> None:
        cudnn: Any = torch.backends.cudnn  # its type declarations lack conv and rnn
        with self._lock:
            self._inside += 1
            wanted = matmul_precision() == "highest" and cudnn.conv.fp32_precision == "tf32"
            if self._inside == 1 and wanted:
                self._recurrent = cudnn.rnn.fp32_precision
                cudnn.allow_tf32 = False  # for convolutions and RNNs: PyTorch raises where the two differ

    def __exit__(self, *_: object) -> None:
        cudnn: Any = torch.backends.cudnn  # its type declarations lack conv and rnn
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._recurrent is not None:
                cudnn.allow_tf32 = True
                cudnn.rnn.fp32_precision = self._recurrent
                self._recurrent = None


EXACT_FLOAT32 = _ExactFloat32()
