"""How large results are: by a factor, or to a width or height in pixels."""

from __future__ import annotations

from dataclasses import dataclass

from ape_sr.errors import UserError


@dataclass(frozen=True)
class Size:
    """One of the three, or none: then results are as large as the network makes them."""

    factor: float | None = None
    width: int | None = None
    height: int | None = None

    def label(self, scale: int) -> str:
        """What stands behind a result's name. scale: of the network, for none of the three."""
        if self.width is not None:
            return f"w{self.width}"
        if self.height is not None:
            return f"h{self.height}"
        return f"x{scale if self.factor is None else self.factor:g}"

    def factor_for(self, width: int, height: int) -> float | None:
        """The factor by which the sides of an image of this size grow. None: the network's scale."""
        if self.width is not None:
            return self.width / width
        if self.height is not None:
            return self.height / height
        return self.factor

    def sides(self, width: int, height: int, scale: int) -> tuple[int, int]:
        """Width and height of the result of an image of this size by a network of this scale."""
        factor = self.factor_for(width, height)
        if factor is None:
            return width * scale, height * scale
        grown = [max(1, round(side * factor)) for side in (width, height)]
        return self.width or grown[0], self.height or grown[1]


def scale_that_suffices(factor: float, scales: list[int], name: str) -> int:
    """The smallest of `scales` that is at least `factor`. UserError, which names the image, if none is."""
    for scale in sorted(scales):
        if scale >= factor * (1 - 1e-9):
            return scale
    raise UserError(
        f"{name}: expected a result of at most {max(scales)} times the size, the largest scale that comes with the "
        f"package, got {factor:.4g} times; name weights with -n"
    )
