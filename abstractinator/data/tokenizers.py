"""From the settings to the tokenizer that they name."""

from pathlib import Path

from abstractinator.contract.file_tokenizer import tokenizer_of
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.data.data_config import DataError


def open_tokenizer(path: str | Path | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; without one, that of bytes. Raises DataError, which says what to do."""
    if path is None:
        return tokenizer_of(None)
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(f"the tokenizer file {path} cannot be read ({reason}); name a tokenizer.json") from error
    try:
        return tokenizer_of(source)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
