"""Images that a command cannot take, while it goes on with the others."""

from __future__ import annotations

import sys

from tqdm import tqdm

from ape_sr.errors import UserError


class Faults:
    """Called with what is wrong with an image. Prints each fault once, above the bar."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    def __call__(self, fault: UserError) -> None:
        """Count the fault and print it, unless it is known."""
        if str(fault) not in self._lines:
            self._lines.add(str(fault))
            tqdm.write(f"ape-sr: error: {fault}", file=sys.stderr)

    def check_any_left(self, images: int) -> None:
        """Raise UserError if none of so many images is without a fault."""
        if len(self._lines) == images:
            raise UserError(f"input: none of {images} images could be taken")

    def check(self, images: int, rest: str) -> None:
        """Raise UserError if there were faults. rest: says what became of the other images."""
        if self._lines:
            raise UserError(f"{len(self._lines)} of {images} images could not be taken; {rest}")
