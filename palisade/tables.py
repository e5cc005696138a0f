"""A user's table from a file, whatever its format."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as paj
import pyarrow.parquet as pq

from schemas.errors import PalisadeError


class UnusableFile(PalisadeError):
    """A file that cannot be read as a table, or whose columns are not those that are needed."""


def read_table(path: Path) -> pa.Table:
    """A Parquet, CSV (first line names the columns), JSON lines or Arrow file, told apart by its name. Raises UnusableFile."""
    try:
        match path.suffix:
            case ".parquet" | ".pq":
                return pq.read_table(path)
            case ".csv":
                return pacsv.read_csv(path)
            case ".jsonl" | ".ndjson" | ".json":
                return paj.read_json(path)
            case ".arrow" | ".feather" | ".ipc":
                return _read_arrow(path)
    except FileNotFoundError as error:
        raise UnusableFile(f"{path} cannot be read: there is no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise UnusableFile(f"{path} cannot be read: {error}") from error
    raise UnusableFile(f"{path}: the name must end in .parquet, .csv, .jsonl or .arrow to say what it is")


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
