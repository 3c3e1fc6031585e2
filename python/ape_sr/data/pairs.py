"""Where training pictures lie: plain folders, and DIV2K's and DIV8K's conventions."""

from __future__ import annotations

from pathlib import Path

from ape_sr.data.images import list_images
from ape_sr.errors import UserError

HR = "_HR"


def find_training_pairs(folder: Path, scale: int, lr_folder: Path | None = None) -> list[tuple[Path, Path | None]]:
    """HR pictures, each with its LR picture or None where that has to be made.

    folder: any folder of pictures; or one as DIV2K is unpacked, with ``<set>_train_HR`` (or one ``<set>_HR``) in it,
        or that folder itself.
    lr_folder: LR pictures of the same stems, with or without ``x<scale>``. Without it ``<set>_LR_bicubic/X<scale>``
        beside an HR folder is taken where it is there.

    UserError where a picture has no partner in an LR folder, or several folders could be meant.
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
