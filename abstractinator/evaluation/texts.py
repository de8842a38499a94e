"""The documents on which a command measures a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abstractinator.config.settings import build
from abstractinator.data import DataConfig, DataError, open_corpus
from abstractinator.data.document_files import find_units

_MOST_BYTES = 64 << 20


def held_out_documents(payload: dict[str, Any], path: Path | None, most_bytes: int = _MOST_BYTES) -> list[bytes]:
    """Documents that the checkpoint was not trained on, none of them empty.

    payload: the contents of the checkpoint. path: a file or folder of the user, of which all documents are taken, up to
    about `most_bytes`; of a folder with files of a validation split, these. Without a path, they are the validation
    documents of the data that the checkpoint was trained on. Raises DataError.
    """
    data = build(DataConfig, payload["config"]["data"])
    if path is None:
        try:
            return open_corpus(data).validation_documents()
        except DataError as error:
            raise DataError(f"the text of the checkpoint's training: {error}; or name other text by --data") from error
    units = find_units(str(path), data.text_column_name)
    documents: list[bytes] = []
    size = 0
    for unit in units.train if units.validation is None else units.validation:
        if size >= most_bytes:
            break
        found = [text for text in unit.read() if text]
        documents += found
        size += sum(map(len, found))
    if not documents:
        raise DataError(f"{path} has no text; name a file or folder with documents")
    return documents
