"""Weights that come with the package, one file a scale."""

from __future__ import annotations

from pathlib import Path

from ape_sr.errors import UserError

FOLDER = Path(__file__).parent
PREFIX = "edsr_12x32_x"


def shipped_weights(scale: int) -> Path:
    """Path of the weights that come with the package for `scale`; UserError lists the scales there are."""
    path = FOLDER / f"{PREFIX}{scale}.safetensors"
    if not path.is_file():
        scales = sorted(int(p.stem.removeprefix(PREFIX)) for p in FOLDER.glob(f"{PREFIX}*.safetensors"))
        available = ", ".join(map(str, scales)) or "none"
        raise UserError(
            f"scale: no weights come with the package for {scale} (available: {available}); name some with -n"
        )
    return path
