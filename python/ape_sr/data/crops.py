"""Random training crops: every batch is a pure function of (seed, step), so a run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ape_sr.data.degrade import bicubic_downscale, modcrop
from ape_sr.data.images import list_images, read_image
from ape_sr.errors import UserError


class CropSampler:
    """LR/HR crop pairs from a folder of images, the LR side made by bicubic downscaling.

    folder: any image files; pictures with a side under `patch` are left out.
    scale: upscaling factor. patch: HR crop size in pixels, a multiple of `scale`.
    seed: of the whole run.

    Pictures are decoded and downscaled once and kept as uint8.
    """

    def __init__(self, folder: Path, scale: int, patch: int, seed: int) -> None:
        if patch % scale:
            raise UserError(f"patch: expected a multiple of the scale {scale}, got {patch}")
        self.scale, self.patch, self.seed = scale, patch, seed
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        paths = list_images(folder)
        for path in paths:
            hr = modcrop(read_image(path), scale)
            if min(hr.shape[:2]) >= patch:
                self.pairs.append((bicubic_downscale(hr, scale), hr))
        if not self.pairs:
            raise UserError(f"data: expected images of at least {patch}x{patch} pixels in {folder}, found none")
        self.skipped = len(paths) - len(self.pairs)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """LR ``[size, 3, patch / scale, patch / scale]`` and HR ``[size, 3, patch, patch]``, float32 in [0, 1]."""
        rng = np.random.default_rng([self.seed, step])
        pairs = [self._crop(rng) for _ in range(size)]
        lr, hr = (
            torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 255 for side in zip(*pairs, strict=True)
        )
        return lr, hr

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lr, hr = self.pairs[rng.integers(len(self.pairs))]
        s, side = self.scale, self.patch // self.scale
        y = rng.integers(lr.shape[0] - side + 1)
        x = rng.integers(lr.shape[1] - side + 1)
        crops = lr[y : y + side, x : x + side], hr[s * y : s * (y + side), s * x : s * (x + side)]
        quarter_turns, mirrored = rng.integers(4), rng.integers(2)
        return tuple(_dihedral(crop, quarter_turns, mirrored) for crop in crops)  # type: ignore[return-value]


def _dihedral(image: np.ndarray, quarter_turns: int, mirrored: int) -> np.ndarray:
    image = np.rot90(image, quarter_turns)
    return image[:, ::-1] if mirrored else image
