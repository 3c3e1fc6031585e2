"""Finds training pictures, in plain folders and in folders as DIV2K and DIV8K have them."""

from __future__ import annotations

from pathlib import Path

from ape_sr.data.images import list_images
from ape_sr.errors import UserError

HR = "_HR"


def find_training_pairs(folder: Path, scale: int, lr_folder: Path | None = None) -> list[tuple[Path, Path | None]]:
    """The paths of all HR pictures, each with the path of its LR picture, or None if that has to be made.

    folder: a folder of pictures; or the folder that DIV2K is unpacked to, with ``<set>_train_HR`` (or one ``<set>_HR``)
        in it; or that folder itself.
    lr_folder: a folder of LR pictures with the same names, with or without ``x<scale>`` at their end. Without it,
        ``<set>_LR_bicubic/X<scale>`` beside an HR folder is used if it exists.

    Raises UserError when a picture has no partner in the LR folder, and when several HR folders could be meant.
    """
    hr_folder = _hr_folder(folder)
    if lr_folder is None and hr_folder.name.endswith(HR):
        beside = hr_folder.parent / f"{hr_folder.name.removesuffix(HR)}_LR_bicubic" / f"X{scale}"
        lr_folder = beside if beside.is_dir() else None
    paths = list_images(hr_folder)
    if lr_folder is None:
        return [(path, None) for path in paths]
    by_stem = {path.stem: path for path in list_images(lr_folder)}
    pairs = []
    for path in paths:
        partner = by_stem.get(f"{path.stem}x{scale}", by_stem.get(path.stem))
        if partner is None:
            raise UserError(f"data: expected {path.stem}x{scale} or {path.stem} in {lr_folder}, for {path}")
        pairs.append((path, partner))
    return pairs


def _hr_folder(folder: Path) -> Path:
    named = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.endswith(HR))
    training = [path for path in named if path.name.endswith(f"_train{HR}")] or named
    if not training:
        return folder
    if len(training) > 1:
        names = ", ".join(path.name for path in training)
        raise UserError(f"data: expected one folder of HR pictures in {folder}, got {names}; name one of them")
    return training[0]
