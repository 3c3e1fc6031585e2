"""When results are right: the contract of every backend, for the patches of a verification.

Pixels, float32: within 1e-4 of the range of values.

Pixels, float16 and bfloat16: the promise is a PSNR within 0.01 dB of float32's. An error of deviation e, independent of
that of the network (E, for a picture at a PSNR of 30 dB 0.032 of the range), costs ``10 * log10(1 + (e / E)**2)`` dB:
0.01 dB for e = 0.0015. That is the bound on the root mean square over all pixels of a patch. It would let a few
wrong pixels pass: none may be off by more than eight times as much, where rounding, nearly gaussian, reaches five in
a million pixels. Random weights amplify rounding more than trained ones, whose body adds little to the picture.

Exits: no prediction lies within a margin of the boundary (`candidate.MARGIN`), so no crossing is to be excused and
exits are equal. Capacities: within 1e-4 (float32) or half that margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]
WAYS = {
    "few": "run_patches",
    "lowest": "run_patches, device full",
    "highest": "run_patches, device full",
    "stages": "run_stage",
}


@dataclass(frozen=True)
class Bounds:
    """pixel: of each one. mean_square: root mean square of a patch. Both of the range. capacity: absolute."""

    pixel: float
    mean_square: float
    capacity: float


FLOAT32 = Bounds(1e-4, 1e-4, 1e-4)
HALF = Bounds(0.012, 0.0015, 0.01)


def why_wrong(reference: Arrays, results: Arrays, dtype: str) -> str:
    """What is wrong with a candidate's results, in one line; empty if nothing is.

    reference, results: what `candidate.make_reference` and `candidate.measure` give.
    """
    bounds = FLOAT32 if dtype == "float32" else HALF
    for way, name in WAYS.items():
        reason = (
            _exits_differ(reference["right.exit"], results[f"{way}.exit"])
            or _pixels_differ(reference["right.sr"], results[f"{way}.sr"], bounds)
            or _capacities_differ(reference["right.capacity"], results[f"{way}.capacity"], bounds)
        )
        if reason:
            return f"{name}: {reason}"
    if "picture" in results:
        reason = _pixels_differ(reference["picture"], results["picture"], FLOAT32)
        if reason:
            return f"split and merge: {reason}"
    return ""


def _exits_differ(expected: NDArray, got: NDArray) -> str:
    if got.shape != expected.shape:
        return f"exits {list(got.shape)}, not {list(expected.shape)}"
    wrong = int((got != expected).sum())
    return f"{wrong} of {len(expected)} patches left at another exit" if wrong else ""


def _pixels_differ(expected: NDArray, got: NDArray, bounds: Bounds) -> str:
    if got.shape != expected.shape:
        return f"pixels {list(got.shape)}, not {list(expected.shape)}"
    if not np.isfinite(got).all():
        return f"{int((~np.isfinite(got)).sum())} pixels are NaN or infinite"
    error = np.abs(got.astype(np.float64) - expected) / (expected.max() - expected.min())
    off = int((error > bounds.pixel).sum())
    if off:
        return f"{off} pixels off by more than {bounds.pixel:.0e} of the range, the worst by {error.max():.1e}"
    spread = np.sqrt((error**2).mean(axis=(1, 2, 3))).max()
    if spread > bounds.mean_square:
        return f"pixels of a patch off by {spread:.1e} of the range (root mean square), more than {bounds.mean_square}"
    return ""


def _capacities_differ(expected: NDArray, got: NDArray, bounds: Bounds) -> str:
    if got.shape != expected.shape:
        return f"capacities {list(got.shape)}, not {list(expected.shape)}"
    close = np.isclose(got, expected, rtol=0, atol=bounds.capacity, equal_nan=True)
    if close.all():
        return ""
    return f"{int((~close).sum())} predictions off by more than {bounds.capacity:.0e}"
