"""Random training crops. Every batch is a pure function of (seed, step), so a run can be resumed exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ape_sr.data.degrade import bicubic_downscale, modcrop
from ape_sr.data.images import image_size, read_image
from ape_sr.data.pairs import find_training_pairs
from ape_sr.errors import UserError

MEMORY = 8 << 30  # the most bytes of decoded pictures that are kept


@dataclass(frozen=True)
class Crop:
    """Where a crop is cut, and how it is turned.

    picture: its number. top, left: in LR pixels. quarter_turns: 0 to 3, made after cutting. mirrored: 1 if the crop is
    mirrored after turning, else 0.
    """

    picture: int
    top: int
    left: int
    quarter_turns: int
    mirrored: int


class CropSampler:
    """Image pairs of LR and HR crops from folders of images. The LR side is read, or made by bicubic downscaling.

    folders, lr_folder: as `find_training_pairs` takes them; an LR folder is allowed with one folder only. Pictures with
    a side of less than `patch` pixels are left out. Every picture is drawn equally often, whatever its size and folder.
    scale: upscaling factor. patch: side of the HR crops in pixels, a multiple of `scale`. seed: of the whole run.

    Pictures are decoded and downscaled when they are drawn first, and kept as uint8, up to `MEMORY` bytes of them.
    `nbytes` counts the bytes of all pictures, LR and HR. `skipped` counts the small pictures that were left out.
    tell: called with a line for each file that is no picture, and for each that cannot be decoded when it is drawn; the
    next one that can then stands in for it.

    Raises UserError for a patch that the scale does not divide, for an LR folder beside several folders, and for
    folders without a picture that is large enough.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        scale: int,
        patch: int,
        seed: int,
        lr_folder: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        if patch % scale:
            raise UserError(f"patch: expected a multiple of the scale {scale}, got {patch}")
        if lr_folder is not None and len(folders) > 1:
            raise UserError(f"lr-data: expected with one folder of images, got {len(folders)}")
        self.scale, self.patch, self.seed, self._tell = scale, patch, seed, tell
        self.pairs: list[tuple[Path, Path | None]] = []
        self.skipped = self.nbytes = 0
        for pair in (pair for folder in folders for pair in find_training_pairs(folder, scale, lr_folder)):
            try:
                width, height = (side - side % scale for side in image_size(pair[0]))
            except UserError as error:
                tell(f"{error}; left out")
                continue
            if min(width, height) < patch:
                self.skipped += 1
                continue
            self.pairs.append(pair)
            self.nbytes += 3 * width * height + 3 * width * height // scale**2
        if not self.pairs:
            names = ", ".join(map(str, folders))
            raise UserError(f"data: expected images of at least {patch}x{patch} pixels in {names}, found none")
        self._decoded: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self._broken: set[int] = set()

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """LR ``[size, 3, patch / scale, patch / scale]`` and HR ``[size, 3, patch, patch]``, float32 in [0, 1]."""
        crops = [self._cut(crop) for crop in self.draws(step, size, lambda picture: self._pair(picture)[0].shape[:2])]
        lr, hr = (
            torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 255 for side in zip(*crops, strict=True)
        )
        return lr, hr

    def draws(self, step: int, size: int, lr_size: Callable[[int], tuple[int, int]]) -> Iterator[Crop]:
        """The `size` crops of a step, one by one. lr_size: gives the height and width of a picture's LR side."""
        rng = np.random.default_rng([self.seed, step])
        side = self.patch // self.scale
        for _ in range(size):
            picture = int(rng.integers(len(self.pairs)))
            height, width = lr_size(picture)
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            yield Crop(picture, top, left, int(rng.integers(4)), int(rng.integers(2)))

    def load_all(self) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
        """LR and HR of every picture in turn, uint8 ``[h, w, 3]``; None for a broken one. All cores decode files."""
        with ThreadPoolExecutor() as pool:
            for index, sides in enumerate(pool.map(self._read, range(len(self.pairs)))):
                yield None if sides is None else self._matched(index, *sides)

    def stand_in(self, picture: int) -> int:
        """The number of the picture that is drawn in its place: its own, or if it is broken, the next that is not."""
        for number in (*range(picture, len(self.pairs)), *range(picture)):
            if number not in self._broken:
                return number
        raise UserError(f"data: expected images that can be decoded, none of {len(self.pairs)} can")

    def _cut(self, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
        lr, hr = self._pair(crop.picture)
        s, side, top, left = self.scale, self.patch // self.scale, crop.top, crop.left
        cut = lr[top : top + side, left : left + side], hr[s * top : s * (top + side), s * left : s * (left + side)]
        lr, hr = (_dihedral(part, crop.quarter_turns, crop.mirrored) for part in cut)
        return lr, hr

    def _pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR of a picture. Both are kept while there is room; the pair drawn longest ago goes first."""
        sides = None
        while sides is None:
            index = self.stand_in(index)
            if index in self._decoded:
                self._decoded.move_to_end(index)
                return self._decoded[index]
            sides = self._read(index)
        lr, hr = self._matched(index, *sides)
        self._decoded[index] = lr, hr
        self._bytes += lr.nbytes + hr.nbytes
        while self._bytes > MEMORY and len(self._decoded) > 1:
            self._bytes -= sum(side.nbytes for side in self._decoded.popitem(last=False)[1])
        return lr, hr

    def _read(self, index: int) -> tuple[np.ndarray | None, np.ndarray] | None:
        """The LR side from disk, or None if it has to be made, and the HR side. None for a pair that is broken."""
        hr_path, lr_path = self.pairs[index]
        try:
            return None if lr_path is None else read_image(lr_path), modcrop(read_image(hr_path), self.scale)
        except UserError as error:
            self._broken.add(index)
            self._tell(f"{error}; the next image stands in for it")
            return None

    def _matched(self, index: int, lr: np.ndarray | None, hr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sides. The LR side is made, or its size is checked."""
        if lr is None:
            return bicubic_downscale(hr, self.scale), hr
        expected = (hr.shape[0] // self.scale, hr.shape[1] // self.scale)
        if lr.shape[:2] != expected:
            hr_path, lr_path = self.pairs[index]
            got = f"{lr.shape[1]}x{lr.shape[0]}"
            raise UserError(f"{lr_path}: expected {expected[1]}x{expected[0]}, 1/{self.scale} of {hr_path}, got {got}")
        return lr, hr


def _dihedral(image: np.ndarray, quarter_turns: int, mirrored: int) -> np.ndarray:
    image = np.rot90(image, quarter_turns)
    return image[:, ::-1] if mirrored else image
