"""Training crops that are cut on the device. The device holds all pictures; the CPU sends only where to cut."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ape_sr.data.crops import CropSampler


class ResidentCrops:
    """The same batches as those of `sampler`, bit for bit, cut on `device`.

    All pictures are stored on the device as uint8, which takes `sampler.nbytes` bytes. `batch` does not wait for the
    device.
    """

    def __init__(self, sampler: CropSampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self._sides = (sampler.patch // sampler.scale, sampler.patch)
        flat = np.empty(sampler.nbytes, np.uint8)
        self._starts: list[tuple[int, int]] = []  # of the LR and the HR side of every picture
        self._lr_sizes: list[tuple[int, int]] = []
        used = 0
        nothing = np.empty((0, 0, 3), np.uint8)
        for lr, hr in (sides or (nothing, nothing) for sides in sampler.load_all()):
            self._starts.append((used, used + lr.size))
            self._lr_sizes.append(lr.shape[:2])
            for side in (lr, hr):
                flat[used : used + side.size] = side.ravel()
                used += side.size
        for told in (self._starts, self._lr_sizes):
            told[:] = [told[sampler.stand_in(number)] for number in range(len(told))]
        self._levels = torch.from_numpy(flat).to(device)
        self._white = torch.tensor(255.0, device=device)  # a tensor, because PyTorch multiplies by 1 / 255 for a number

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """The batch that `CropSampler.batch` returns, on the device."""
        cuts = np.empty((2, size, 3), np.int64)
        for number, crop in enumerate(self.sampler.draws(step, size, self._lr_sizes.__getitem__)):
            width, scale = self._lr_sizes[crop.picture][1], 1
            for kind, (start, side) in enumerate(zip(self._starts[crop.picture], self._sides, strict=True)):
                row = 3 * width * scale
                first = start + scale * (row * crop.top + 3 * crop.left)
                cuts[kind, number] = _dihedral(first, row, 3, side, crop.quarter_turns, crop.mirrored)
                scale = self.sampler.scale
        sent = torch.from_numpy(cuts)
        if self.device.type == "cuda":  # from other memory the copy would wait for the device
            sent = sent.pin_memory()
        sent = sent.to(self.device, non_blocking=True)
        lr, hr = (self._cut(part, side) for part, side in zip(sent, self._sides, strict=True))
        return lr, hr

    def _cut(self, cuts: Tensor, side: int) -> Tensor:
        """Cut crops. cuts: ``[N, 3]``, the first byte of each crop and the bytes to its next row and column."""
        first, down, right = cuts[:, :, None, None, None].unbind(1)
        along = torch.arange(side, device=self.device)
        bytes_ = first + down * along[:, None, None] + right * along[:, None] + torch.arange(3, device=self.device)
        return (self._levels[bytes_].float() / self._white).permute(0, 3, 1, 2)


def _dihedral(first: int, down: int, right: int, side: int, quarter_turns: int, mirrored: int) -> tuple[int, int, int]:
    """First byte, and bytes to the next row and column, of a square of `side` pixels after turning and mirroring."""
    for _ in range(quarter_turns):  # counterclockwise as np.rot90: column side - 1 - i becomes row i
        first, down, right = first + (side - 1) * right, -right, down
    return (first + (side - 1) * right, down, -right) if mirrored else (first, down, right)
