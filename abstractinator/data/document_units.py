"""Units of documents: the parts of a local corpus that are read whole (a file, a row group, a few lines).

A corpus of any size is a list of units. What a unit must say before it is read is cheap: its number of
documents and its approximate size; so a corpus of many GB is opened without reading it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from abstractinator.contract.byte_tokenizer import text_to_bytes
from abstractinator.data.data_config import DataError

LINES_BYTES = 8 * 2**20  # a .jsonl file is cut into units of about this size, at line ends


class DocumentUnit(Protocol):
    """Some documents that are read together."""

    @property
    def name(self) -> str: ...  # of the file, relative to the corpus: the same wherever the corpus lies

    @property
    def count(self) -> int: ...  # documents in it, empty ones included

    @property
    def size(self) -> int: ...  # about how many bytes its text takes

    def read(self) -> list[bytes]: ...  # all its documents in order; DataError where that fails


@dataclass(frozen=True)
class MemoryUnit:
    """Documents that are in memory already."""

    name: str
    documents: tuple[bytes, ...]

    @property
    def count(self) -> int:
        return len(self.documents)

    @property
    def size(self) -> int:
        return sum(map(len, self.documents))

    def read(self) -> list[bytes]:
        return list(self.documents)


@dataclass(frozen=True)
class TextFileUnit:
    """A text or source file is one document, byte for byte: no decoding, no newline translation."""

    name: str
    path: Path
    size: int
    count: int = 1

    def read(self) -> list[bytes]:
        return [read_bytes(self.path)]


@dataclass(frozen=True)
class JsonLinesUnit:
    """Some whole lines of a .jsonl file, each a record with the text in `column`; blank lines are empty."""

    name: str
    path: Path
    column: str
    offset: int  # of the first line, in bytes
    size: int  # of all the lines, in bytes
    first_line: int  # its number in the file, from 1
    count: int

    def read(self) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                lines = file.read(self.size).split(b"\n")[: self.count]
        except OSError as error:
            raise unreadable_file(self.path, error) from None
        return [
            self._document(line, self.first_line + index) if line.strip() else b"" for index, line in enumerate(lines)
        ]

    def _document(self, line: bytes, number: int) -> bytes:
        try:
            # surrogateescape keeps bytes that are not UTF-8; text_to_bytes turns them back.
            record = json.loads(line.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
        except ValueError as error:
            raise DataError(f"{self.path}, line {number}: not JSON ({error}); repair or remove it") from None
        return record_text(record, self.column, f"{self.path}, line {number}")


@dataclass(frozen=True)
class ParquetUnit:
    """One row group of a parquet file; only the text column is read."""

    name: str
    path: Path
    column: str
    row_group: int
    size: int
    count: int

    def read(self) -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read_row_group(self.row_group, columns=[self.column]).column(0)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            # As binary the values come out as bytes, without decoding them to str and back.
            values = column.cast(pa.large_binary()).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise unreadable_parquet(self.path, error) from None
        return [value or b"" for value in values]


def json_lines_units(name: str, path: Path, column: str) -> Iterator[JsonLinesUnit]:
    """The units of a .jsonl file; its lines are counted, not parsed."""
    offset, line = 0, 1
    with path.open("rb") as file:
        while lines := file.read(LINES_BYTES) + file.readline():
            count = lines.count(b"\n") + (not lines.endswith(b"\n"))
            yield JsonLinesUnit(name, path, column, offset, len(lines), line, count)
            offset, line = offset + len(lines), line + count


def parquet_units(name: str, path: Path, column: str) -> list[ParquetUnit]:
    """The row groups of a parquet file, from its metadata alone.

    Raises DataError for a file that is not readable parquet and for one without a text column of that name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise unreadable_parquet(path, error) from None
    if column not in schema.names:
        raise missing_column(str(path), column, schema.names)
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(kind) not in ("string", "large_string", "binary", "large_binary", "string_view", "binary_view"):
        raise DataError(f"{path}: column {column!r} holds {kind}, not text; {_COLUMN_HINT}")
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    leaf = leaves.index(column)
    return [
        ParquetUnit(name, path, column, index, group.column(leaf).total_uncompressed_size, group.num_rows)
        for index, group in ((index, metadata.row_group(index)) for index in range(metadata.num_row_groups))
    ]


_COLUMN_HINT = "choose another with data.text_column_name="


def record_text(record: Any, column: str, where: str) -> bytes:
    """The text of one JSON or hub record as bytes; a null is empty. DataError names `where` otherwise."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a record {{…}} with a column {column!r}, found {type(record).__name__}")
    if column not in record:
        raise missing_column(where, column, list(record))
    value = record[column]
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {type(value).__name__}, not text; {_COLUMN_HINT}")
    return text_to_bytes(value)


def missing_column(where: str, column: str, columns: list[str]) -> DataError:
    """The error for a text column that is not there; lists the ones that are."""
    return DataError(f"{where}: no column {column!r}; it has {', '.join(columns) or 'none'}; {_COLUMN_HINT}")


def unreadable_parquet(path: Path, error: Exception) -> DataError:
    """The error for a parquet file that is damaged, cut short or something else."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path}: not a readable parquet file ({reason}); fetch it again or leave it out")


def unreadable_file(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"{path}: cannot be read ({error.strerror}); check the file and its rights")


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises DataError naming it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable_file(path, error) from None
