"""What a user is told about a file that cannot be used."""

from importlib import import_module
from pathlib import Path
from typing import Any

from abstractinator.data.data_config import DataError
from abstractinator.messages import first_line

COLUMN_HINT = "choose another with data.text_column_name="


def require(package: str, reader: str) -> Any:
    """A package that is needed only for some data, such as pyarrow. reader: what needs it. DataError without it."""
    try:
        return import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise DataError(f"{reader} needs the package {name}: pip install 'abstractinator[data]'") from None


def unreadable_file(path: Path, error: OSError) -> DataError:
    """The error for a file or folder that the system does not let us read."""
    return DataError(f"{path}: cannot be read ({error.strerror or first_line(error)}); check it and its permissions")


def damaged(path: Path, kind: str, error: BaseException) -> DataError:
    """The error for a file that is damaged, cut short or of another kind. kind: such as "parquet"."""
    return DataError(f"{path}: not a readable {kind} file ({first_line(error)}); fetch it again or leave it out")


def missing_column(where: object, column: str, columns: list[str]) -> DataError:
    """The error for a text column that is missing; lists the existing ones."""
    return DataError(f"{where}: no column {column!r}; it has {', '.join(columns) or 'none'}; {COLUMN_HINT}")
