"""Types of arguments that the subcommands share. argparse turns their errors into one line and status 2."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

FIDELITIES = (20, 80)  # dB, as `ape_kernels.plan.plan` has them; importing that brings PyTorch

Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage] - argparse has no public name for it


def existing_folder(text: str) -> Path:
    """The path of an existing folder."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected an existing folder, got {text}")
    return path


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = _float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = _float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    value = _float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def fidelity(text: str) -> float | str | None:
    """A number of dB in `FIDELITIES`, "auto" (the weights' own), or "full", which is None."""
    if text in ("full", "auto"):
        return None if text == "full" else text
    value, (least, most) = _float(text), FIDELITIES
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected dB from {least} to {most}, full or auto, got {text}")
    return value


def counted(count: int) -> str:
    """A number of images, in words."""
    return f"{count} image{'' if count == 1 else 's'}"


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
