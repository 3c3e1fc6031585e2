"""Images that follow each other, such as the frames of a video: what did not change is not computed again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ape_kernels.backends.protocol import Kept
from ape_kernels.forward import APEForward
from ape_kernels.inputs import checked_pixels
from ape_kernels.packed import Packed
from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.plan import Plan
from ape_kernels.plan.work import areas
from ape_kernels.run import levels
from ape_kernels.run.levels import Levels
from ape_kernels.run.runner import Runner


class Reused(NamedTuple):
    """Of one image, in its pixels: all, those for which the picture was computed again, and of all the interpolated."""

    pixels: int
    renewed: int
    interpolated: int


class FrameReuse:
    """Runs an `APEForward` on images that follow each other, and computes again what changed.

    The picture is ``fast(image)`` bit for bit. The cpu backend computes a tile of 72x72 pixels again where its pixels
    have changed, or the plan, or what the tiles above and to the left hand on: as far as the change reaches, and no
    further. Other backends keep a picture whole or not at all; so does cpu where the memory for it would be too much.

    fast: with the context "model" and a network that shares feature maps. Its settings may change between calls.
    tolerance: difference of a pixel, as a share of the range, up to which it counts as unchanged: it is taken as it was
        then. 0 is exact; above it the picture is that of an image whose pixels differ by no more.
    last: what became of the last image; None before any.

    Several threads may call it: they take turns.
    Raises ValueError for a module with another context, and for a tolerance outside 0 to 1.
    """

    def __init__(self, fast: APEForward, tolerance: float = 0.0) -> None:
        if fast.context != "model" or fast.packed_for_images.sharing is None:
            raise ValueError("fast: expected one that runs images on shared feature maps, in the context 'model'")
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance: expected a share of the range from 0 to 1, got {tolerance}")
        self.fast, self.tolerance = fast, tolerance
        self.last: Reused | None = None
        self._shown: _Shown | None = None
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget what was shown: the next image is computed whole."""
        with self._lock:
            self._shown, self.last = None, None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The picture float32 ``[1, C, s * H, s * W]`` of an image ``[1, C, H, W]``, as `APEForward` takes it."""
        packed = self.fast.packed_for_images
        pixels = checked_pixels(image, "image", packed.program, packed.weights.device)
        if len(pixels) != 1:
            raise ValueError(f"image: expected one, [1, C, H, W], got {list(image.shape)}")
        white = float(getattr(self.fast.model, "rgb_range", 1.0))
        height, width = (side * packed.shape.scale for side in pixels.shape[2:])
        with self._lock:
            picture = self._next(_Floats(self.fast.runner(), pixels, self.tolerance * white))
            return picture[:, :, :height, :width].clone()

    @torch.no_grad()
    def run_levels(self, given: Levels, planes: Callable[[NDArray[Any]], Tensor]) -> bool:
        """The same for an image and a picture of whole numbers, with no floats of all of them in between.

        planes: gives such an image as float32 ``[1, C, H, W]``, if a plan must be made from it.
        Returns False, and has done nothing, where the backend cannot do that.
        Raises ValueError for arrays of another dtype or shape.
        """
        if not levels.can(self.fast.packed_for_images):
            return False
        with self._lock:
            given.out[...] = self._next(_Numbers(self.fast.runner(), given, planes, self.tolerance))
        return True

    def _next(self, images: _Images) -> Any:
        """The picture, which stays in use."""
        shown, self._shown = self._shown, None  # if anything fails, the next image is computed whole
        runner, now = images.runner, images.now
        if shown is not None and not (
            shown.packed is runner.packed and shown.fit is runner.fit and shown.form == images.form
        ):
            shown = None
        if shown is not None and self.tolerance:
            now = images.steady(shown.seen)
        plan = images.plan(now)
        exit_at = None if plan is None else plan.exit_at
        picture, kept = (None, runner.keep(*images.sides)) if shown is None else (shown.picture, shown.kept)
        renewed = 0.0
        if shown is None or kept is not None or not images.same(now, shown.seen) or not _same(exit_at, shown.exit_at):
            picture = images.run(now, plan, kept, picture)
            renewed = 1.0 if kept is None else kept.renewed
        if now is images.now and (self.tolerance or kept is None):
            now = images.copy(now)
        self._shown = _Shown(runner.packed, runner.fit, images.form, now, exit_at, kept, picture)
        pixels = math.prod(images.sides)
        interpolated = 0 if plan is None else _interpolated(plan, images.sides)
        self.last = Reused(pixels, round(renewed * pixels), interpolated)
        return picture


class _Shown(NamedTuple):
    """What was shown last, and what it was made with. kept: None where the backend keeps nothing."""

    packed: Packed
    fit: ExitFit | None
    form: tuple[object, ...]
    seen: Any
    exit_at: Tensor | None
    kept: Kept | None
    picture: Any


class _Images(Protocol):
    """An image, tensor or array, and what is done with images of its kind."""

    @property
    def runner(self) -> Runner: ...
    @property
    def now(self) -> Any: ...
    @property
    def sides(self) -> tuple[int, int]: ...
    @property
    def form(self) -> tuple[object, ...]:
        """Of images of another form nothing can be kept."""
        ...

    def steady(self, before: Any) -> Any:
        """The image, but as before where it differs by no more than the tolerance."""
        ...

    def plan(self, image: Any) -> Plan | None:
        """What the settings ask for."""
        ...

    def run(self, image: Any, plan: Plan | None, kept: Kept | None, picture: Any) -> Any:
        """The picture. kept: what changed is computed, in the picture of the image before, if there was one."""
        ...

    def same(self, one: Any, other: Any) -> bool: ...
    def copy(self, image: Any) -> Any: ...


class _Floats(NamedTuple):
    """float32 ``[1, C, H, W]``. tolerance: in the range of the pixels."""

    runner: Runner
    now: Tensor
    tolerance: float

    @property
    def form(self) -> tuple[object, ...]:
        return (self.now.shape,)

    @property
    def sides(self) -> tuple[int, int]:
        return self.now.shape[2], self.now.shape[3]

    def steady(self, before: Tensor) -> Tensor:
        still = ((self.now - before).abs() <= self.tolerance).all(1, keepdim=True)
        return torch.where(still, before, self.now)

    def plan(self, image: Tensor) -> Plan | None:
        return self.runner.plan(image)

    def run(self, image: Tensor, plan: Plan | None, kept: Kept | None, picture: Tensor | None) -> Tensor:
        if kept is None:
            return self.runner.run(image, plan=plan, report=False)[0]
        return self.runner.run_again(image, plan, kept, picture)

    def same(self, one: Tensor, other: Tensor) -> bool:
        return torch.equal(one, other)

    def copy(self, image: Tensor) -> Tensor:
        return image.clone()


class _Numbers(NamedTuple):
    """Whole numbers ``[H, W, C]``. tolerance: as a share of the range."""

    runner: Runner
    given: Levels
    planes: Callable[[NDArray[Any]], Tensor]
    tolerance: float

    @property
    def now(self) -> NDArray[Any]:
        return self.given.image

    @property
    def form(self) -> tuple[object, ...]:
        image, out, value_range = self.given
        return image.shape, image.dtype, out.shape, value_range

    @property
    def sides(self) -> tuple[int, int]:
        return self.now.shape[0], self.now.shape[1]

    def steady(self, before: NDArray[Any]) -> NDArray[Any]:
        apart = np.maximum(self.now, before) - np.minimum(self.now, before)
        close = apart <= int(self.tolerance * np.iinfo(before.dtype).max)
        # of all channels; `all` takes five times as long
        still = reduce(np.logical_and, (close[..., channel] for channel in range(close.shape[2])))
        return np.where(still[..., None], before, self.now)

    def plan(self, image: NDArray[Any]) -> Plan | None:
        return self.runner.plan(self.planes(image)) if self.runner.plans else None

    def run(
        self, image: NDArray[Any], plan: Plan | None, kept: Kept | None, picture: NDArray[Any] | None
    ) -> NDArray[Any]:
        if picture is None:
            picture = np.empty(self.given.out.shape, self.given.out.dtype)
        given = self.given._replace(image=image, out=picture)
        self.runner.run_levels(given, lambda: self.planes(image), plan=plan, kept=kept)
        return picture

    def same(self, one: NDArray[Any], other: NDArray[Any]) -> bool:
        return np.array_equal(one, other)

    def copy(self, image: NDArray[Any]) -> NDArray[Any]:
        return image.copy()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether plans are equal."""
    return one is other if one is None or other is None else torch.equal(one, other)


def _interpolated(plan: Plan, sides: tuple[int, int]) -> int:
    """Pixels of an image."""
    heights, widths = areas(*sides, plan.cell, plan.exit_at.device)
    return int((heights * widths)[plan.exit_at[0] < 0].sum())
