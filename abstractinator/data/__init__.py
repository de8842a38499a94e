"""Text in, rows of byte tokens out: corpora, the split by document, packing.

`DataConfig` → `open_corpus` → `Corpus` → `train_loader` (`PackedRows` in batches) → `ReadAhead`.
Importing this package imports neither torch, pyarrow nor datasets; the names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abstractinator.data.batches import TrainLoader, count_rows, rows_of, train_loader
    from abstractinator.data.corpora import open_corpus
    from abstractinator.data.corpus import Corpus, DocumentStream
    from abstractinator.data.data_config import DataConfig, DataError
    from abstractinator.data.packed_rows import PackedRows
    from abstractinator.data.read_ahead import ReadAhead

__all__ = [
    "Corpus",
    "DataConfig",
    "DataError",
    "DocumentStream",
    "PackedRows",
    "ReadAhead",
    "TrainLoader",
    "count_rows",
    "open_corpus",
    "rows_of",
    "train_loader",
]

_MODULES = {
    "Corpus": "corpus",
    "DocumentStream": "corpus",
    "open_corpus": "corpora",
    "DataConfig": "data_config",
    "DataError": "data_config",
    "PackedRows": "packed_rows",
    "ReadAhead": "read_ahead",
    "TrainLoader": "batches",
    "count_rows": "batches",
    "rows_of": "batches",
    "train_loader": "batches",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
