"""Tables as text, .csv and .tsv: a header with the columns' names, then a document a row."""

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from abstractinator.contract.tokenizer import text_to_bytes
from abstractinator.data.data_config import DataError
from abstractinator.data.formats.errors import missing_column
from abstractinator.data.formats.source import Source, with_line_ends
from abstractinator.data.formats.text import text_units
from abstractinator.data.formats.units import DocumentUnit

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}
_FIELD_BYTES = 2**31 - 1  # the csv module refuses fields of 128 kB otherwise
_HEADER_BYTES = 2**16
_LOCK = threading.Lock()  # the module's limit is the process's


@dataclass(frozen=True)
class DelimitedUnit(DocumentUnit):
    """Some whole rows of a file; the text is the field at `index`, and an empty row is empty."""

    name: str
    source: Source
    delimiter: str
    index: int
    offset: int  # of the first row, in bytes
    size: int  # of all the rows, in bytes
    first_line: int  # its number in the file, from 1
    count: int

    def read(self) -> list[bytes]:
        with self.source.open(self.offset) as file:
            rows = _Rows(file, self.delimiter, self.source, self.first_line)
            return [self._text(row, line) for _, (row, line) in zip(range(self.count), rows, strict=False)]

    def _text(self, row: list[str], line: int) -> bytes:
        if not row:
            return b""
        if len(row) <= self.index:
            raise DataError(
                f"{self.source.path}, line {line}: a row of {len(row)} fields has no field {self.index + 1}, the text; "
                "repair or remove it"
            )
        return text_to_bytes(row[self.index])


class _Rows:
    """The rows of a stream, each with the number of its first line. offset: bytes of the rows read so far."""

    def __init__(self, file: BinaryIO, delimiter: str, source: Source, first_line: int = 1) -> None:
        self._file, self._delimiter, self._source = file, delimiter, source
        self.offset, self.line = 0, first_line

    def __iter__(self) -> Iterator[tuple[list[str], int]]:
        rows, line = csv.reader(self._lines(), delimiter=self._delimiter, strict=True), self.line
        while True:
            try:
                with _long_fields():
                    row = next(rows, None)
            except csv.Error as error:
                raise DataError(f"{self._source.path}, line {line}: not a row ({error}); repair or remove it") from None
            if row is None:
                return
            yield row, line
            line = self.line

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            self.offset += len(line)
            self.line += 1
            yield line.decode("utf-8", "surrogateescape")


def delimited_units(name: str, source: Source, column: str, suffix: str, *, given: bool) -> list[DocumentUnit]:
    """The units of a table; its rows are read once, to count them.

    given: the user named this very file. One that was only found in a folder and has no column of that name is a text
    document. Raises DataError for rows that cannot be read.
    """
    source = with_line_ends(source)
    delimiter, columns = _header(source, column, suffix)
    if column not in columns:
        if given:
            raise DataError(f"{missing_column(source.path, column, columns)}, or name it .txt to read it as text")
        return text_units(name, source)
    index, units = columns.index(column), list[DocumentUnit]()
    with source.open() as file:
        rows = _Rows(file, delimiter, source)
        next(iter(rows))
    with source.open(start := rows.offset) as file:
        rows = _Rows(file, delimiter, source, rows.line)
        first_line, offset, count = rows.line, 0, 0
        for _ in rows:
            count += 1
            if rows.offset - offset >= source.unit_bytes:
                size = rows.offset - offset
                units.append(DelimitedUnit(name, source, delimiter, index, start + offset, size, first_line, count))
                first_line, offset, count = rows.line, rows.offset, 0
        if count:
            size = rows.offset - offset
            units.append(DelimitedUnit(name, source, delimiter, index, start + offset, size, first_line, count))
    return units


def _header(source: Source, column: str, suffix: str) -> tuple[str, list[str]]:
    """The delimiter by which the first row has the column, or else the usual one; and the columns' names."""
    line = source.read(size=_HEADER_BYTES).removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
    text = line.decode("utf-8", "surrogateescape").rstrip("\r")
    headers = {delimiter: next(csv.reader([text], delimiter=delimiter), []) for delimiter in _DELIMITERS[suffix]}
    found = [delimiter for delimiter, columns in headers.items() if column in columns]
    delimiter = found[0] if found else _DELIMITERS[suffix][0]
    return delimiter, headers[delimiter]


@contextmanager
def _long_fields() -> Iterator[None]:
    with _LOCK:
        before = csv.field_size_limit(_FIELD_BYTES)
        try:
            yield
        finally:
            csv.field_size_limit(before)
