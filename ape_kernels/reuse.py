"""Images that follow each other, such as the frames of a video: what did not change is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ape_kernels.forward import APEForward
from ape_kernels.inputs import checked_pixels
from ape_kernels.packed import Packed
from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.plan import Plan
from ape_kernels.run.images import RING
from ape_kernels.run.windows import Window, Windows

MOST = 0.8  # of an image's area: where windows take more, it is run whole


class Reused(NamedTuple):
    """Of one image: its cells, how many were computed again, and of all how many are interpolated."""

    cells: int
    renewed: int
    interpolated: int


class _Shown(NamedTuple):
    """What the last call has shown, and what it was made with."""

    packed: Packed
    fit: ExitFit | None
    image: Tensor  # each pixel as it was when its cell was renewed last
    exit_at: Tensor | None
    picture: Tensor


class FrameReuse:
    """Runs an `APEForward` on images that follow each other, and computes again what changed.

    A cell of the picture is kept where image and plan are what they were, as far around as the last bits of its pixels
    depend on: the picture is ``fast(image)`` bit for bit. Deep networks depend on pixels far away, and gain less.
    Backends that do not run images in tiles (all but cpu) keep a picture whole or not at all.

    fast: with the context "model" and a network that shares feature maps. Its settings may change between calls.
    tolerance: difference of a pixel, as a share of the range, up to which it counts as unchanged since its cell was
        computed last. 0 is exact; above it the picture may differ by what the network makes of such differences.
    last: what became of the last image; None before any.

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

    def reset(self) -> None:
        """Forget what was shown: the next image is computed whole."""
        self._shown, self.last = None, None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The picture float32 ``[1, C, s * H, s * W]`` of an image ``[1, C, H, W]``, as `APEForward` takes it."""
        packed = self.fast.packed_for_images
        pixels = checked_pixels(image, "image", packed.program, packed.weights.device)
        if len(pixels) != 1:
            raise ValueError(f"image: expected one, [1, C, H, W], got {list(image.shape)}")
        plan = self.fast.runner().plan(pixels)
        cell = self.fast.cell if plan is None else plan.cell
        fit = self.fast.fit
        windows = Windows.of(packed, 1 if plan is None else cell, RING if fit is None else fit.ring)
        shown = self._shown
        if shown is None or not self._alike(shown, packed, pixels, plan):
            return self._whole(pixels, packed, plan, cell)
        stale = _cells(self._changed(shown.image, pixels), cell)
        renew = _grown(stale, -(-(windows.reach if self.tolerance else windows.bits) // cell))
        if plan is not None:
            assert shown.exit_at is not None
            renew |= _grown(plan.exit_at != shown.exit_at, -(-windows.margin // cell))
        if not renew.any():
            return self._done(shown, renew, plan)
        parts = [(part, windows.around(part, pixels.shape[2:])) for part in _rectangles(renew[0], cell, pixels)]
        area = sum(window.height * window.width for _, window in parts)
        if not windows.exact or area > MOST * pixels.shape[2] * pixels.shape[3]:
            return self._whole(pixels, packed, plan, cell)
        picture, seen = shown.picture.clone(), shown.image.clone()
        for part, window in parts:
            made = self._run(pixels, window, plan)
            to, at = part.scaled(self.fast.scale), window.scaled(self.fast.scale)
            picture[:, :, to.top : to.bottom, to.left : to.right] = made[
                :, :, to.top - at.top : to.bottom - at.top, to.left - at.left : to.right - at.left
            ]
            rows, columns = slice(part.top, part.bottom), slice(part.left, part.right)
            seen[:, :, rows, columns] = pixels[:, :, rows, columns]
        return self._done(_Shown(packed, fit, seen, None if plan is None else plan.exit_at, picture), renew, plan)

    def _alike(self, shown: _Shown, packed: Packed, pixels: Tensor, plan: Plan | None) -> bool:
        """Whether anything shown can be kept."""
        if shown.packed is not packed or shown.fit is not self.fast.fit or shown.image.shape != pixels.shape:
            return False
        if plan is None or shown.exit_at is None:
            return plan is None and shown.exit_at is None
        return plan.exit_at.shape == shown.exit_at.shape

    def _changed(self, before: Tensor, now: Tensor) -> Tensor:
        """Pixels, bool ``[1, 1, H, W]``."""
        white = float(getattr(self.fast.model, "rgb_range", 1.0))
        return ((now - before).abs() > self.tolerance * white).any(1, keepdim=True)

    def _run(self, pixels: Tensor, window: Window, plan: Plan | None) -> Tensor:
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        part = pixels[:, :, rows, columns]
        if plan is None:
            return self.fast.runner().run(part, report=False)[0]
        down, across = (slice(span.start // plan.cell, -(-span.stop // plan.cell)) for span in (rows, columns))
        cut = replace(plan, exit_at=plan.exit_at[:, down, across])
        return self.fast.runner().run(part, plan=cut, report=False)[0]

    def _whole(self, pixels: Tensor, packed: Packed, plan: Plan | None, cell: int) -> Tensor:
        picture = self.fast.runner().run(pixels, plan=plan, report=False)[0]
        everything = torch.ones(1, *(-(-side // cell) for side in pixels.shape[2:]), dtype=torch.bool)
        shown = _Shown(packed, self.fast.fit, pixels.clone(), None if plan is None else plan.exit_at, picture)
        return self._done(shown, everything, plan)

    def _done(self, shown: _Shown, renewed: Tensor, plan: Plan | None) -> Tensor:
        self._shown = shown
        interpolated = 0 if plan is None else int((plan.exit_at < 0).sum())
        self.last = Reused(renewed.numel(), int(renewed.sum()), interpolated)
        return shown.picture.clone()


def _cells(pixels: Tensor, cell: int) -> Tensor:
    """Cells ``[1, R, K]`` of which a pixel ``[1, 1, H, W]`` is set."""
    height, width = pixels.shape[2:]
    padded = pad(pixels.float(), (0, -width % cell, 0, -height % cell))
    return max_pool2d(padded, cell)[:, 0] > 0


def _grown(cells: Tensor, by: int) -> Tensor:
    """Cells within `by` cells of one that is set."""
    return max_pool2d(cells[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def _rectangles(cells: Tensor, cell: int, image: Tensor) -> Iterator[Window]:
    """Rectangles of whole cells ``[R, K]`` that hold all that are set: rows that touch together, then their columns."""
    height, width = image.shape[2:]
    for top, bottom in _runs(cells.any(1)):
        for left, right in _runs(cells[top:bottom].any(0)):
            first, last = cell * top, cell * left
            yield Window(first, last, min(cell * bottom, height) - first, min(cell * right, width) - last)


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Stretches of set flags, as [begin, end)."""
    edges = pad(flags.int(), (1, 1)).diff().tolist()
    begins = [i for i, edge in enumerate(edges) if edge == 1]
    return list(zip(begins, [i for i, edge in enumerate(edges) if edge == -1], strict=True))
