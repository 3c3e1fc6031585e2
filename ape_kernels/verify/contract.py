"""The contract of every backend: which results are right, for the patches of a verification.

Pixels in float32 are within 1e-4 of the range of values.

Pixels in float16 and bfloat16: the promise is a PSNR within 0.01 dB of that of float32. Let E be the error of the
network itself; at a PSNR of 30 dB it is 0.032 of the range. An independent error of deviation e costs
``10 * log10(1 + (e / E)**2)`` dB, which is 0.01 dB for e = 0.0015. This bounds the root mean square over all pixels of
a patch. A few wrong pixels would still pass, so no pixel may be wrong by more than eight times this bound. Rounding is
nearly gaussian and reaches about five times its deviation in a million pixels. Random weights amplify rounding more
than trained weights, whose body adds little to the picture. So 1.5 times the torch backend's own error in that dtype
is right as well.

Exits must be equal. No prediction is closer to the boundary than `candidate.GAP`, so rounding is no excuse.
Predictions are within 1e-4 (float32) or half that distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
WAYS = {
    "few": "run_patches",
    "lowest": "run_patches, device full",
    "highest": "run_patches, device full",
    "stages": "run_stage",
}
IMAGE_WAYS = {
    "full": ("full", "images at full depth"),
    "plan": ("plan", "images by a plan"),
    "lowest": ("plan", "images by a plan, device full"),
    "highest": ("plan", "images by a plan, device full"),
}
OWN = 1.5  # times the torch backend's own error


@dataclass(frozen=True)
class Errors:
    """The errors of results, or the bounds of such errors.

    pixel: of the worst pixel. mean_square: root mean square of the worst patch. Both as shares of the range of values.
    prediction: of the worst prediction.
    """

    pixel: float
    mean_square: float
    prediction: float


FLOAT32 = Errors(1e-4, 1e-4, 1e-4)
SIXTEEN_BITS = Errors(0.012, 0.0015, 0.02)


def why_wrong(reference: Arrays, results: Arrays, dtype: str, own: Arrays | None) -> str:
    """One line that says what is wrong with a candidate's results; empty if nothing is wrong.

    reference, results: as `candidate.make_reference` and `candidate.measure` give them. own: the torch backend's
    results in that dtype, or None.
    """
    bounds = FLOAT32 if dtype == "float32" else SIXTEEN_BITS
    if dtype != "float32" and own is not None and not _no_number(reference, own, "few"):
        bounds = _widened(bounds, errors_of(reference, own, "few"))
    for way, name in WAYS.items():
        reason = _no_number(reference, results, way) or _too_far(errors_of(reference, results, way), bounds)
        if reason:
            return f"{name}: {reason}"
    if "picture" in results:
        expected, got = reference["picture"], results["picture"]
        worst = np.abs(got - expected).max() if got.shape == expected.shape else np.nan
        if not worst <= FLOAT32.pixel:
            return f"split and merge: pixels off by {worst:.1e}"
    return ""


def why_images_wrong(reference: Arrays, results: Arrays, dtype: str, own: Arrays | None) -> str:
    """The same as `why_wrong`, for what `images.make_reference` and `images.measure` give."""
    bounds = FLOAT32 if dtype == "float32" else SIXTEEN_BITS
    if dtype != "float32" and own is not None and np.isfinite(own["full"]).all():
        bounds = _widened(bounds, _pixel_errors(reference["right.full"], own["full"]))
    for way, (right, name) in IMAGE_WAYS.items():
        expected, got = reference[f"right.{right}"], results[way]
        if got.shape != expected.shape:
            return f"{name}: picture {list(got.shape)}, not {list(expected.shape)}"
        if lost := int((~np.isfinite(got)).sum()):
            return f"{name}: {lost} pixels are NaN or infinite"
        if reason := _too_far(_pixel_errors(expected, got), bounds):
            return f"{name}: {reason}"
    return ""


def _widened(bounds: Errors, own: Errors) -> Errors:
    """`bounds`, each replaced by `OWN` times the torch backend's own error where that is more."""
    return Errors(*(max(bound, OWN * error) for bound, error in zip(astuple(bounds), astuple(own), strict=True)))


def _no_number(reference: Arrays, results: Arrays, way: str) -> str:
    """Faults that no bound allows: other shapes, other exits, values that are not finite."""
    for part in ("sr", "exit", "capacity"):
        got, expected = results[f"{way}.{part}"].shape, reference[f"right.{part}"].shape
        if got != expected:
            return f"{part} {list(got)}, not {list(expected)}"
    wrong = int((results[f"{way}.exit"] != reference["right.exit"]).sum())
    if wrong:
        return f"{wrong} of {len(reference['right.exit'])} patches left at another exit"
    lost = int((~np.isfinite(results[f"{way}.sr"])).sum())
    if lost:
        return f"{lost} pixels are NaN or infinite"
    if (np.isnan(results[f"{way}.capacity"]) != np.isnan(reference["right.capacity"])).any():
        return "predictions are NaN"
    return ""


def errors_of(reference: Arrays, results: Arrays, way: str) -> Errors:
    """The errors of the patches that a candidate ran in one of the `WAYS`; shapes and exits must be right."""
    predictions = np.nan_to_num(np.abs(results[f"{way}.capacity"] - reference["right.capacity"]))
    errors = _pixel_errors(reference["right.sr"], results[f"{way}.sr"])
    return replace(errors, prediction=float(predictions.max()))


def _pixel_errors(right: NDArray[Any], got: NDArray[Any]) -> Errors:
    """Errors per pixel of pictures ``[N, O, H, W]``, of images or of patches."""
    expected = right.astype(np.float64)
    error = np.abs(got - expected) / (expected.max() - expected.min())
    mean_square = np.sqrt((error**2).mean(axis=(1, 2, 3))).max()
    return Errors(float(error.max()), float(mean_square), 0.0)


def _too_far(errors: Errors, bounds: Errors) -> str:
    if errors.pixel > bounds.pixel:
        return f"pixels off by up to {errors.pixel:.1e} of the range, not {bounds.pixel:.1e}"
    if errors.mean_square > bounds.mean_square:
        return (
            f"a patch is off by {errors.mean_square:.1e} of the range (root mean square), not {bounds.mean_square:.1e}"
        )
    if errors.prediction > bounds.prediction:
        return f"predictions off by up to {errors.prediction:.1e}, not {bounds.prediction:.1e}"
    return ""
