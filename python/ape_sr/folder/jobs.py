"""What is read and what is written for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path

from ape_sr.errors import UserError
from ape_sr.folder.inputs import Inputs
from ape_sr.folder.lists import is_list
from ape_sr.pictures.formats import BY_NAME, SUFFIXES, format_of
from ape_sr.pictures.read import has_pages
from ape_sr.places import Url, exists, is_dir, is_file


@dataclass(frozen=True)
class Job:
    """One image: where it is read, and where the picture and its exit map go. name: of the image, in lines.

    fault: why it cannot be done, if that is known beforehand.
    """

    source: Path
    name: str
    picture: Path
    exits: Path
    fault: str | None = None


def is_alone(given: Sequence[Path]) -> bool:
    """Whether one image was given, and no folder or list."""
    return len(given) == 1 and not given[0].is_dir() and not is_list(given[0])


def plan(
    given: Sequence[Path], inputs: Inputs, output: Path | None, label: str, name: str | None, first_frame: bool
) -> list[Job]:
    """A job for every input.

    given: as the user wrote it. output: a file for one image, else a folder; None: beside the inputs.
    label: what is put behind the names in folders. name: of the format in folders; None: PNG, of several pages TIFF,
    but for a `Url`, which is not read before its turn.
    UserError if the output is a file but there are several inputs, or has no known suffix.
    """
    alone = is_alone(given)
    if output is not None and alone and not is_dir(output) and (output.suffix or exists(output)):
        form = format_of(output)
        if name is not None and form.name != name:
            raise UserError(f"format: expected {form.name}, as the output is {output.name}, got {name}")
        source = given[0]
        jobs = [Job(source, source.name, output, output.with_name(f"{output.stem}_exits.png"))]
    else:
        if output is not None and (is_file(output) or (output.suffix.lower() in SUFFIXES and not is_dir(output))):
            what = "the input is one" if len(given) == 1 else "there are several inputs"
            raise UserError(f"output: expected a folder, as {what}, got {output}")
        jobs = _in_folders(inputs, output, label, name, first_frame)
    return _checked(jobs)


def _in_folders(inputs: Inputs, output: Path | None, label: str, name: str | None, first_frame: bool) -> list[Job]:
    folders = [source.parent if output is None else output / below for source, below in inputs.files]
    stems = Counter((folder, source.stem) for folder, (source, _) in zip(folders, inputs.files, strict=True))
    jobs: list[Job] = []
    for folder, (source, below) in zip(folders, inputs.files, strict=True):
        stem = source.stem
        if stems[folder, stem] > 1:  # a.png beside a.webp
            stem = f"{stem}_{source.suffix[1:]}"
        suffix = ".png"
        if name is not None:
            suffix = BY_NAME[name].suffixes[0]
        elif (
            source.suffix.lower() in BY_NAME["tif"].suffixes
            and not first_frame
            and not isinstance(source, Url)
            and has_pages(source)
        ):
            suffix = BY_NAME["tif"].suffixes[0]
        picture = folder / f"{stem}_{label}{suffix}"
        jobs.append(Job(source, str(below / source.name), picture, folder / f"{stem}_{label}_exits.png"))
    return jobs


def _checked(jobs: list[Job]) -> list[Job]:
    """The same jobs; with a fault those that would overwrite an input or the result of one before them."""
    sources = {realpath(job.source) for job in jobs}
    taken: dict[str, Path] = {}
    checked: list[Job] = []
    for job in jobs:
        for target in (job.picture, job.exits):
            place = realpath(target)
            if place in sources:
                fault = f"output: {target} is an input and would be overwritten; choose another folder or name"
                job = replace(job, fault=fault)
            elif taken.setdefault(place, job.source) != job.source:
                job = replace(
                    job, fault=f"{job.source}: would be written to {target}, as {taken[place].name}; rename it"
                )
        checked.append(job)
    return checked
