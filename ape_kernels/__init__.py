"""Fused kernels for Adaptive-Patch-Exiting super-resolution: run a trained network with one line more.

>>> fast = APEForward(model, threshold=0.1)  # doctest: +SKIP
>>> sr = fast(lr)                            # doctest: +SKIP
"""

from ape_kernels.adapters import NotRecognised, to_program
from ape_kernels.authors import PatchForward
from ape_kernels.backends import BackendUnavailable
from ape_kernels.exits import add_exits, all_exits
from ape_kernels.forward import APEForward
from ape_kernels.geometry import PatchGrid
from ape_kernels.packed import Packed, Wish, pack
from ape_kernels.plan import ExitFit, Plan
from ape_kernels.plan.fitting import fit_exits
from ape_kernels.report import Report

__all__ = [
    "APEForward",
    "BackendUnavailable",
    "ExitFit",
    "NotRecognised",
    "Packed",
    "PatchForward",
    "PatchGrid",
    "Plan",
    "Report",
    "Wish",
    "add_exits",
    "all_exits",
    "fit_exits",
    "pack",
    "to_program",
]
__version__ = "0.1.0"
