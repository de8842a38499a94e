"""Files of a JSON record a line: .jsonl, .ndjson, and .json that is one of them."""

from dataclasses import dataclass

from abstractinator.data.data_config import DataError
from abstractinator.data.formats.records import line_text, parse_json, record_text
from abstractinator.data.formats.source import Source, with_line_ends
from abstractinator.data.formats.text import text_units
from abstractinator.data.formats.units import DocumentUnit, MemoryUnit

_HEAD_BYTES = 2**20  # of a .json file, in which its kind is recognised


@dataclass(frozen=True)
class JsonLinesUnit(DocumentUnit):
    """Some whole lines of a file, each a record with the text in `column`; blank lines are empty."""

    name: str
    source: Source
    column: str
    offset: int  # of the first line, in bytes
    size: int  # of all the lines, in bytes
    first_line: int  # its number in the file, from 1
    count: int

    def read(self) -> list[bytes]:
        lines = enumerate(self.source.read(self.offset, self.size).split(b"\n")[: self.count], self.first_line)
        return [line_text(line, self.column, f"{self.source.path}, line {number}") for number, line in lines]


def json_lines_units(name: str, source: Source, column: str) -> list[DocumentUnit]:
    """The units of a file of records; its lines are counted, not parsed."""
    source = with_line_ends(source)
    units: list[DocumentUnit] = []
    offset, line = 0, 1
    with source.open() as file:
        while lines := file.read(source.unit_bytes) + file.readline():
            count = lines.count(b"\n") + (not lines.endswith(b"\n"))
            units.append(JsonLinesUnit(name, source, column, offset, len(lines), line, count))
            offset, line = offset + len(lines), line + count
    return units


def json_units(name: str, source: Source, column: str, *, given: bool) -> list[DocumentUnit]:
    """A .json file: a list of records, one record, or, under the wrong suffix, a record a line.

    given: the user named this very file. One that was only found in a folder and holds no such records (settings,
    notebooks: source trees are full of them) is a text document.
    """
    path = source.path
    if _has_record_a_line(source):
        return json_lines_units(name, source, column)
    try:
        content = parse_json(source.read(), path)
    except DataError as error:
        if given:
            raise DataError(f"{error}, or name it .txt to read it as text") from None
        return text_units(name, source)
    records = content if isinstance(content, list) else [content]
    if not given and not any(isinstance(record, dict) and column in record for record in records[:1]):
        return text_units(name, source)
    texts = (record_text(record, column, f"{path}, record {number}") for number, record in enumerate(records, 1))
    return [MemoryUnit(name, tuple(texts))]


def _has_record_a_line(source: Source) -> bool:
    """Whether the first of several lines is a record of its own."""
    first, _, rest = with_line_ends(source).read(size=_HEAD_BYTES).lstrip().partition(b"\n")
    try:
        return rest.lstrip().startswith(b"{") and isinstance(parse_json(first, source.path), dict)
    except DataError:
        return False
