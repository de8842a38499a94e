"""Arrow files, which `datasets` writes by `save_to_disk`: in Arrow's stream format or its file format."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from abstractinator.data.data_config import DataError
from abstractinator.data.formats.errors import damaged, require
from abstractinator.data.formats.source import Source
from abstractinator.data.formats.tables import check_text_column, text_values
from abstractinator.data.formats.units import DocumentUnit

_FILE_FORMAT = b"ARROW1"


@dataclass(frozen=True)
class ArrowUnit(DocumentUnit):
    """Some record batches of a file."""

    name: str
    path: Path
    column: str
    first_batch: int
    batches: int
    size: int
    count: int

    def read(self) -> list[bytes]:
        import pyarrow as pa

        with _batches(self.path) as (_, batches):
            mine = islice(batches, self.first_batch, self.first_batch + self.batches)
            return text_values(pa.chunked_array([batch.column(self.column) for batch in mine]))


def arrow_units(name: str, source: Source, column: str) -> list[DocumentUnit]:
    """The units of an arrow file, which is mapped into memory, not copied.

    Raises DataError for a file that is not readable arrow and for one without a text column of that name.
    """
    path, units = source.path, list[DocumentUnit]()
    first, last, size, count = 0, 0, 0, 0
    with _batches(path) as (schema, batches):
        check_text_column(schema, column, path)
        for batch in batches:
            last, size, count = last + 1, size + batch.column(column).nbytes, count + batch.num_rows
            if size >= source.unit_bytes:
                units.append(ArrowUnit(name, path, column, first, last - first, size, count))
                first, size, count = last, 0, 0
    if last > first:
        units.append(ArrowUnit(name, path, column, first, last - first, size, count))
    return units


@contextmanager
def _batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the record batches of a file. DataError, also from the block, where they cannot be read."""
    pa, ipc = require("pyarrow", f"{path}, an arrow file,"), require("pyarrow.ipc", f"{path}, an arrow file,")
    try:
        with pa.memory_map(str(path)) as file:
            if file.read(len(_FILE_FORMAT)) == _FILE_FORMAT:
                reader = ipc.open_file(file)
                yield reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                file.seek(0)
                reader = ipc.open_stream(file)
                yield reader.schema, iter(reader)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, "arrow", error) from None
