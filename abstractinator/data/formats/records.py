"""JSON records and their text."""

import json
from typing import Any

from abstractinator.contract.tokenizer import text_to_bytes
from abstractinator.data.data_config import DataError
from abstractinator.data.formats.errors import COLUMN_HINT, missing_column


def parse_json(data: bytes, where: object) -> Any:
    """The content of a JSON text. Raises DataError naming `where` for any other."""
    try:
        # surrogateescape keeps bytes that are not UTF-8; text_to_bytes turns them back.
        return json.loads(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), parse_int=_integer)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read; remove it") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); repair or remove it") from None


def _integer(digits: str) -> int | float:
    """Python reads no integers of thousands of digits; as text they do not matter, so infinity will do."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def record_text(record: Any, column: str, where: object) -> bytes:
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
        raise DataError(f"{where}: column {column!r} holds {type(value).__name__}, not text; {COLUMN_HINT}")
    return text_to_bytes(value)


def line_text(line: bytes, column: str, where: object) -> bytes:
    """The text of a line that is a JSON record; a blank line is empty. DataError names `where` otherwise."""
    return record_text(parse_json(line, where), column, where) if line.strip() else b""
