"""The report of a run: a Parquet file with a row per picture, written as they come."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ape_sr.files import atomic_path, remove_leftovers
from ape_sr.folder.jobs import Job
from ape_sr.many.worker import Record
from ape_sr.places import local_target

NAME = "report.parquet"
FIGURES = ("width", "height", "seconds", "share", "fidelity", "exits", "interpolated")
ROWS = 1000  # that are held until they are written


class Report:
    """A report that is being written. Made by `report_to`."""

    def __init__(self, writer: Any) -> None:
        self._writer, self._rows = writer, list[dict[str, Any]]()

    def add(self, job: Job, record: Record) -> None:
        """A row."""
        row = asdict(record) | {"source": str(job.source), "picture": str(job.picture)}
        line = row.pop("line")
        row["error"] = line if record.state == "failed" else None
        if record.state != "done":
            row |= dict.fromkeys(FIGURES)
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self.write()

    def write(self) -> None:
        """The rows that are held, to the file."""
        import pyarrow  # pyright: ignore[reportMissingTypeStubs]

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=schema()))
            self._rows.clear()


def schema() -> Any:
    """Columns of a report; see `Record`."""
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    return pa.schema(
        {
            "source": pa.string(),
            "picture": pa.string(),
            "state": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "seconds": pa.float64(),
            "share": pa.float64(),
            "fidelity": pa.float64(),
            "exits": pa.list_(pa.int64()),
            "interpolated": pa.int64(),
            "error": pa.string(),
        }
    )


@contextmanager
def report_to(path: Path) -> Generator[Report, None, None]:
    """A report that is at `path` in the end; after an interruption there is none."""
    from pyarrow.parquet import ParquetWriter  # pyright: ignore[reportMissingTypeStubs]

    remove_leftovers([path])
    with local_target(path) as target, atomic_path(target) as temporary, ParquetWriter(temporary, schema()) as writer:
        report = Report(writer)
        yield report
        report.write()
