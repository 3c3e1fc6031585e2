"""Pictures for training and evaluation: RGB of 8 bits, as arrays and as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ape_sr.errors import UserError
from ape_sr.pictures.colour import to_8_bits
from ape_sr.pictures.formats import SUFFIXES
from ape_sr.pictures.frames import Frame
from ape_sr.pictures.read import image_size, read_file
from ape_sr.pictures.write import write_picture

__all__ = ["image_size", "list_images", "read_image", "to_image", "to_tensor", "write_image"]


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; UserError if it is no folder or holds none.

    Folders and hidden files are left out, whatever their names end in.
    """
    if not folder.is_dir():
        raise UserError(f"folder: expected an existing folder, got {folder}")
    names = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    paths = sorted(path for path in names if not path.is_dir())
    if not paths:
        raise UserError(f"folder: expected images ({', '.join(SUFFIXES)}) in {folder}, found none")
    return paths


def read_image(path: Path) -> np.ndarray:
    """Read an image file as uint8 RGB ``[H, W, 3]``: the first frame, grey expanded, alpha dropped, turned upright."""
    (frame,) = read_file(path, first_frame=True).frames
    pixels = to_8_bits(frame.pixels) if frame.pixels.itemsize == 2 else frame.pixels
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def write_image(path: Path, image: np.ndarray, note: str | None = None) -> None:
    """Write uint8 ``[H, W, 3]``; the file appears whole or not at all. note: see `ape_sr.pictures.read.read_note`."""
    write_picture(path, [Frame(image)], note=note)


def to_tensor(image: np.ndarray, rgb_range: float = 1.0) -> Tensor:
    """uint8 ``[H, W, 3]`` to float32 ``[1, 3, H, W]`` in [0, rgb_range]."""
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return planes.float() * (rgb_range / 255)


def to_image(tensor: Tensor, rgb_range: float = 1.0) -> np.ndarray:
    """Float ``[1, 3, H, W]`` in [0, rgb_range] to uint8 ``[H, W, 3]``, rounded and clamped."""
    levels = (tensor[0].float() * (255 / rgb_range)).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
