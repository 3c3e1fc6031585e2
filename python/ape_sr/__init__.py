"""Super-resolution on top of ape_kernels: networks, training, evaluation, and upscaling from Python or the shell.

>>> upscaler = ape_sr.load("edsr-12x32-x4")          # doctest: +SKIP
>>> upscaler.upscale("photo.png").save("large.png")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ape_sr.errors import UserError
    from ape_sr.many.api import upscale_many
    from ape_sr.upscaler import Report, Upscaler, load

__all__ = ["Report", "Upscaler", "UserError", "load", "upscale_many"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: PyTorch takes seconds, and not every use of this package needs it."""
    if name == "UserError":
        from ape_sr.errors import UserError

        return UserError
    if name == "upscale_many":
        from ape_sr.many.api import upscale_many

        return upscale_many
    if name in __all__:
        from ape_sr.extras import how_to_install, missing

        if lacking := missing():
            raise ModuleNotFoundError(f"ape_sr needs {', '.join(lacking)}; run: {how_to_install(*lacking)}")
        from ape_sr import upscaler

        return getattr(upscaler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
