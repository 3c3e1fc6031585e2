"""Fused kernels for Adaptive-Patch-Exiting super-resolution.

>>> fast = APEForward(model, threshold=0.1)  # doctest: +SKIP
>>> sr = fast(lr)                            # doctest: +SKIP
"""

from ape_kernels import ops  # noqa: F401 - registers the operations
from ape_kernels.adapters import NotRecognised, to_program
from ape_kernels.backends import BackendUnavailable
from ape_kernels.exits import add_exits, all_exits
from ape_kernels.forward import APEForward
from ape_kernels.patches import PatchGrid
from ape_kernels.report import Report

__all__ = [
    "APEForward",
    "BackendUnavailable",
    "NotRecognised",
    "PatchGrid",
    "Report",
    "add_exits",
    "all_exits",
    "to_program",
]
__version__ = "0.1.0"
