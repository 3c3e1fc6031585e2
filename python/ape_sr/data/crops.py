"""Random training crops: every batch is a pure function of (seed, step), so a run resumes exactly."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ape_sr.data.degrade import bicubic_downscale, modcrop
from ape_sr.data.images import image_size, read_image
from ape_sr.data.pairs import find_training_pairs
from ape_sr.errors import UserError

MEMORY = 8 << 30  # bytes of decoded pictures that are kept


class CropSampler:
    """LR/HR crop pairs from a folder of images, the LR side read from disk or made by bicubic downscaling.

    folder, lr_folder: as `find_training_pairs` takes them; pictures with a side under `patch` are left out.
    scale: upscaling factor. patch: HR crop size in pixels, a multiple of `scale`.
    seed: of the whole run.

    Pictures are decoded and downscaled when first drawn and kept as uint8, up to `MEMORY` bytes of them.
    """

    def __init__(self, folder: Path, scale: int, patch: int, seed: int, lr_folder: Path | None = None) -> None:
        if patch % scale:
            raise UserError(f"patch: expected a multiple of the scale {scale}, got {patch}")
        self.scale, self.patch, self.seed = scale, patch, seed
        found = find_training_pairs(folder, scale, lr_folder)
        self.pairs = [pair for pair in found if min(side - side % scale for side in image_size(pair[0])) >= patch]
        if not self.pairs:
            raise UserError(f"data: expected images of at least {patch}x{patch} pixels in {folder}, found none")
        self.skipped = len(found) - len(self.pairs)
        self._decoded: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """LR ``[size, 3, patch / scale, patch / scale]`` and HR ``[size, 3, patch, patch]``, float32 in [0, 1]."""
        rng = np.random.default_rng([self.seed, step])
        pairs = [self._crop(rng) for _ in range(size)]
        lr, hr = (
            torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 255 for side in zip(*pairs, strict=True)
        )
        return lr, hr

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lr, hr = self._pair(int(rng.integers(len(self.pairs))))
        s, side = self.scale, self.patch // self.scale
        y = rng.integers(lr.shape[0] - side + 1)
        x = rng.integers(lr.shape[1] - side + 1)
        crops = lr[y : y + side, x : x + side], hr[s * y : s * (y + side), s * x : s * (x + side)]
        quarter_turns, mirrored = rng.integers(4), rng.integers(2)
        return tuple(_dihedral(crop, quarter_turns, mirrored) for crop in crops)  # type: ignore[return-value]

    def _pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR of a picture, kept while there is room; the one not drawn for longest goes first."""
        if index in self._decoded:
            self._decoded.move_to_end(index)
            return self._decoded[index]
        hr_path, lr_path = self.pairs[index]
        hr = modcrop(read_image(hr_path), self.scale)
        lr = bicubic_downscale(hr, self.scale) if lr_path is None else read_image(lr_path)
        expected = (hr.shape[0] // self.scale, hr.shape[1] // self.scale)
        if lr.shape[:2] != expected:
            got = f"{lr.shape[1]}x{lr.shape[0]}"
            raise UserError(f"{lr_path}: expected {expected[1]}x{expected[0]}, 1/{self.scale} of {hr_path}, got {got}")
        self._decoded[index] = lr, hr
        self._bytes += lr.nbytes + hr.nbytes
        while self._bytes > MEMORY and len(self._decoded) > 1:
            self._bytes -= sum(side.nbytes for side in self._decoded.popitem(last=False)[1])
        return lr, hr


def _dihedral(image: np.ndarray, quarter_turns: int, mirrored: int) -> np.ndarray:
    image = np.rot90(image, quarter_turns)
    return image[:, ::-1] if mirrored else image
