"""Frames to pictures: what did not change since the frame before is not computed again."""

from __future__ import annotations

import numpy as np
import torch

from ape_kernels.reuse import FrameReuse
from ape_kernels.run.levels import Levels
from ape_sr.errors import UserError, memory_for
from ape_sr.models.base import pixel_range
from ape_sr.pictures.planes import from_planes, to_planes
from ape_sr.upscaler import Upscaler, from_device
from ape_sr.video.codecs import LEVELS

ROUNDED = 1 + 1e-4  # differences of float32 pixels that are a whole number of levels may be a little more


class Enlarger:
    """Upscales the frames of a video, one after the other.

    tolerance: levels of 8 bits by which a pixel may differ and count as unchanged. With 0 every picture is what
        `Upscaler.upscale` makes of its frame alone.
    pixels, renewed, interpolated: of all frames so far: all, those whose part of the picture was computed, and those
        that the plan left to interpolation. Networks that run on patches compute everything, and leave them at 0.

    Raises UserError for a tolerance above 0 with a network that runs on patches.
    """

    def __init__(self, upscaler: Upscaler, tolerance: float = 0) -> None:
        self.scale, self.tolerance = upscaler.scale, tolerance
        self.pixels = self.renewed = self.interpolated = 0
        self._upscaler = upscaler
        self._reuse: FrameReuse | None = None
        if upscaler.network.context == "model" and upscaler.network.packed_for_images.sharing is not None:
            self._reuse = FrameReuse(upscaler.network, tolerance * ROUNDED / LEVELS if tolerance < LEVELS else 1)
        elif tolerance:
            raise UserError("reuse-tolerance: expected 0 for a network that runs on patches, of which none is reused")

    def reset(self) -> None:
        """Forget the frames so far."""
        if self._reuse is not None:
            self._reuse.reset()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The picture ``[s * H, s * W, 3]`` of a frame, uint8 or uint16 ``[H, W, 3]``.

        UserError if values overflow in fp16, or the memory does not suffice.
        """
        with memory_for("input"):
            return self._upscaler.upscale(pixels) if self._reuse is None else self._reused(self._reuse, pixels)

    def _reused(self, reuse: FrameReuse, pixels: np.ndarray) -> np.ndarray:
        rgb_range = pixel_range(self._upscaler.network.model)
        height, width, channels = pixels.shape
        picture = np.empty((height * self.scale, width * self.scale, channels), pixels.dtype)

        def planes(image: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(to_planes(image, rgb_range)).to(self._upscaler.device)

        if not reuse.run_levels(Levels(pixels, picture, rgb_range), planes):
            sr = reuse(planes(pixels))[0]
            self._upscaler.check_finite(sr)
            if sr.device.type == "cpu":
                from_planes(sr.numpy(), rgb_range, picture)
            else:
                from_device(sr, rgb_range, picture)
        assert reuse.last is not None
        self.pixels += reuse.last.pixels
        self.renewed += reuse.last.renewed
        self.interpolated += reuse.last.interpolated
        return picture
