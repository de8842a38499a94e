"""From a file to its units, by its kind."""

import os
import stat
from pathlib import Path

from abstractinator.data.data_config import DataError
from abstractinator.data.formats import compressed
from abstractinator.data.formats.archives import archive_units
from abstractinator.data.formats.arrow import arrow_units
from abstractinator.data.formats.delimited import delimited_units
from abstractinator.data.formats.errors import unreadable_file
from abstractinator.data.formats.json_lines import json_lines_units, json_units
from abstractinator.data.formats.parquet import parquet_units
from abstractinator.data.formats.source import Source, open_source
from abstractinator.data.formats.suffixes import DELIMITED, LINES, TABLES, kind_of
from abstractinator.data.formats.text import text_units
from abstractinator.data.formats.units import DocumentUnit

_BINARY = {".parquet", ".arrow"}


def file_units(path: Path, name: str, column: str, *, given: bool) -> tuple[list[DocumentUnit], Source]:
    """The units of one file, and the source from which they are read. given: the user named this very file.

    Raises DataError where it cannot be read, and for what is no regular file, such as a pipe or a device.
    """
    check_regular(path)
    kind = kind_of(path)
    if given and compressed.UNREAD & {kind.suffix, path.suffix.lower()}:
        raise DataError(f"{path} is compressed: unpack it, and give its contents")
    if kind.compression and kind.suffix in _BINARY:
        raise DataError(f"{path}: {kind.suffix} files are read as they are: unpack it, and give its contents")
    is_text = kind.is_known and kind.suffix not in _BINARY
    source = open_source(path, kind.compression, is_text=is_text)
    return _units(name, source, column, kind.suffix if kind.suffix in TABLES else "", given=given), source


def _units(name: str, source: Source, column: str, suffix: str, *, given: bool) -> list[DocumentUnit]:
    if suffix == ".parquet":
        return parquet_units(name, source, column)
    if suffix == ".arrow":
        return arrow_units(name, source, column)
    if suffix == ".tar":
        return archive_units(name, source, column)
    if suffix in LINES:
        return json_lines_units(name, source, column)
    if suffix == ".json":
        return json_units(name, source, column, given=given)
    if suffix in DELIMITED:
        return delimited_units(name, source, column, suffix, given=given)
    return text_units(name, source)


def check_regular(path: Path) -> None:
    """Raises DataError for what cannot be read as a file, without opening it: a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise unreadable_file(path, error) from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is a pipe, a socket or a device; copy its contents into a file, and give that")
