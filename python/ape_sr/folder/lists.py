"""Lists of inputs: a text file with a path or address per line, or a Parquet file with a column of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.places import Url, local_copy, place

TEXT, PARQUET = ".txt", ".parquet"
COLUMN = "path"


def is_list(path: Path) -> bool:
    """Whether a path is one of a list, by its name."""
    return path.suffix.lower() in (TEXT, PARQUET) and not path.is_dir()


def read_list(path: Path) -> list[tuple[Path, Path]]:
    """The files of a list, each with the folder that its result is put in below the output's.

    These are the files' own folders, without what they have in common. Paths are relative to the working folder.
    UserError for a list that cannot be read, or is empty.
    """
    with local_copy(path) as local:
        try:
            lines = _of_parquet(path, local) if path.suffix.lower() == PARQUET else local.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a list: {' '.join(str(error).split())}") from None
    files = [place(line.strip()) for line in lines if line.strip()]
    if not files:
        raise UserError(f"{path}: expected a path or address per line, found none")
    return [(file, below) for file, below in zip(files, _below(files), strict=True)]


def _of_parquet(path: Path, local: Path) -> list[str]:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: needs pyarrow; run: {how_to_install('pyarrow')}")
    from pyarrow import types  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow.parquet import read_schema, read_table  # pyright: ignore[reportMissingTypeStubs]

    schema = read_schema(local)
    if COLUMN not in schema.names or not types.is_string(schema.field(COLUMN).type):
        raise UserError(f"{path}: expected a column {COLUMN!r} of strings, got {', '.join(schema.names) or 'none'}")
    return [line or "" for line in read_table(local, columns=[COLUMN])[COLUMN].to_pylist()]


def _below(files: Sequence[Path]) -> list[Path]:
    """Of each file the folder, without the folders that all have in common; none if a folder could lead elsewhere."""
    folders = [file.parent.parts for file in files]
    shortest = min(folders, key=len)
    common = sum(
        1 for _ in takewhile(lambda at: all(parts[at] == shortest[at] for parts in folders), range(len(shortest)))
    )
    rest = [Path(*parts[common:]) for parts in folders]
    leads_elsewhere = any(".." in below.parts or below.is_absolute() for below in rest)
    mixed = not common and any(isinstance(file, Url) for file in files)
    return [Path()] * len(files) if leads_elsewhere or mixed else rest
