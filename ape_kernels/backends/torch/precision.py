"""float32 that is float32 on a GPU."""

from __future__ import annotations

import threading
from typing import Any

import torch


class _ExactFloat32:
    """Within it, float32 convolutions are computed in float32 and not in TF32 (cuDNN's default, 1e-3 of the range off).

    ``torch.set_float32_matmul_precision("high")`` allows TF32 here as it does in matrix products. The setting is the
    whole process's: the first thread that enters changes it, the last one that leaves puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._recurrent: str | None = None  # of RNNs, to be put back; None where nothing was changed

    def __enter__(self) -> None:
        cudnn: Any = torch.backends.cudnn  # its types leave conv and rnn out
        with self._lock:
            self._inside += 1
            wanted = torch.get_float32_matmul_precision() == "highest" and cudnn.conv.fp32_precision == "tf32"
            if self._inside == 1 and wanted:
                self._recurrent = cudnn.rnn.fp32_precision
                cudnn.allow_tf32 = False  # for both: PyTorch's own code raises where they differ

    def __exit__(self, *_: object) -> None:
        cudnn: Any = torch.backends.cudnn  # its types leave conv and rnn out
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._recurrent is not None:
                cudnn.allow_tf32 = True
                cudnn.rnn.fp32_precision = self._recurrent
                self._recurrent = None


EXACT_FLOAT32 = _ExactFloat32()
