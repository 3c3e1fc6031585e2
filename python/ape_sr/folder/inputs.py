"""Which files are inputs, and what is passed over."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ape_sr.errors import UserError
from ape_sr.folder.lists import is_list, read_list
from ape_sr.pictures.formats import SUFFIXES
from ape_sr.pictures.read import read_note
from ape_sr.places import Url


@dataclass
class Inputs:
    """files: path, and the folder below the given one that holds it, ``.`` for a file that was given itself.

    passed: how many entries of each kind were passed over. faults: lines on folders that could not be read.
    """

    files: list[tuple[Path, Path]] = field(default_factory=list[tuple[Path, Path]])
    passed: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    def describe_passed(self) -> str:
        """What was passed over, in words. Empty if nothing was."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.passed.items()))


def find_inputs(given: Sequence[Path], recursive: bool) -> Inputs:
    """The picture files given, and those in the folders and lists given. recursive: in sub folders of folders too.

    Any other file that was given is an input whatever it is. Whether the files of a list exist is seen when their turn
    comes. UserError if one that was given does not exist, for a list that cannot be read, or if there is none at all.
    """
    inputs = Inputs()
    for path in given:
        if is_list(path):
            inputs.files += read_list(path)
        elif isinstance(path, Url) and path.is_dir():
            inputs.files += _at_url(path, recursive, inputs)
        elif path.is_dir():
            inputs.files += _in_folder(path, Path(), recursive, inputs)
        elif path.exists():
            inputs.files.append((path, Path()))
        else:
            raise UserError(f"input: no such file or folder: {path}")
    if not inputs.files and not inputs.faults:
        passed = inputs.describe_passed()
        names = ", ".join(map(str, given))
        raise UserError(
            f"input: expected images ({', '.join(SUFFIXES)}) in {names}, found none"
            + (f" (passed over: {passed})" if passed else "")
        )
    return inputs


def _in_folder(folder: Path, below: Path, recursive: bool, inputs: Inputs) -> Iterator[tuple[Path, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        inputs.faults.append(f"{folder}: cannot be read: {error.strerror or error}")
        return
    for entry in entries:
        path = folder / entry.name
        kind = _kind(entry, path)
        if kind == "sub folders (-r takes them)" and recursive:
            yield from _in_folder(path, below / entry.name, recursive, inputs)
        elif kind:
            inputs.passed[kind] += 1
        else:
            yield path, below


def _at_url(folder: Url, recursive: bool, inputs: Inputs) -> Iterator[tuple[Path, Path]]:
    """As `_in_folder`; whether a file is a result is seen when it is read, as its turn comes."""
    for path, is_folder in folder.entries(recursive):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts):
            inputs.passed["hidden"] += 1
        elif is_folder:
            inputs.passed["sub folders (-r takes them)"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            inputs.passed["of other kinds"] += 1
        else:
            yield path, Path(*below.parent.parts)


def _kind(entry: os.DirEntry[str], path: Path) -> str:
    """Why an entry is no input; empty if it is one, also if it is sure to fail."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nothing or to itself; gone
        return "" if path.suffix.lower() in SUFFIXES else "of other kinds"
    if stat.S_ISDIR(mode):
        return "links to folders" if entry.is_symlink() else "sub folders (-r takes them)"
    if path.suffix.lower() not in SUFFIXES or not stat.S_ISREG(mode):
        return "of other kinds"
    return "" if read_note(path) is None else "results of ape-sr"
