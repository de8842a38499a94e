"""The text column of a table of Arrow's types."""

from typing import Any

from abstractinator.data.data_config import DataError
from abstractinator.data.formats.errors import COLUMN_HINT, missing_column

_TEXT_TYPES = ("string", "large_string", "binary", "large_binary", "string_view", "binary_view")


def check_text_column(schema: Any, column: str, where: object) -> None:
    """Raises DataError where a schema does not have exactly one column of that name, or it holds no text."""
    if column not in schema.names:
        raise missing_column(where, column, schema.names)
    if (count := schema.names.count(column)) > 1:
        raise DataError(f"{where}: has {count} columns {column!r}; rename all but one, or {COLUMN_HINT}")
    kind = schema.field(column).type
    if str(_storage(kind)) not in _TEXT_TYPES:
        raise DataError(f"{where}: column {column!r} holds {kind}, not text; {COLUMN_HINT}")


def text_values(column: Any) -> list[bytes]:
    """The values of a chunked column that `check_text_column` has accepted; a null is empty."""
    import pyarrow as pa

    values: list[bytes] = []
    for chunk in column.chunks:
        while isinstance(chunk, pa.ExtensionArray | pa.DictionaryArray):
            chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk.dictionary_decode()
        # As binary the values come out as bytes, without decoding them to str and back.
        values += [value or b"" for value in chunk.cast(pa.large_binary()).to_pylist()]
    return values


def _storage(kind: Any) -> Any:
    """The type of the values of a dictionary or extension type."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType | pa.DictionaryType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind
