"""What a corpus is: training documents in a shuffled, resumable order, and held-out documents."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class DocumentStream(ABC):
    """The training documents of one epoch, in order: an iterator of non-empty `bytes`."""

    def __iter__(self) -> "DocumentStream":
        return self

    @abstractmethod
    def __next__(self) -> bytes:
        """The next document. Raises StopIteration after the last, DataError when it cannot be read."""

    @abstractmethod
    def position(self) -> Any:
        """The position of the next document: a small value of plain Python (int, str, None, list, dict) from which
        `Corpus.train_documents` continues; after the last document, that of the end."""


class Corpus(ABC):
    """Text split by document into training and validation."""

    name: str  # for messages and logs
    fingerprint: str  # of its names, counts and sizes, and of the split; positions of another do not fit
    settings: Mapping[str, Any] = MappingProxyType({})  # those that choose the text and the split, for messages
    size_bytes: int | None  # about how much training text an epoch has; None for a stream

    @abstractmethod
    def train_documents(self, epoch: int, seed: int, position: Any = None) -> DocumentStream:
        """Every training document once, shuffled by (seed, epoch), from `position` or from the start.

        The order is a function of the corpus, `seed` ≥ 0 and `epoch` ≥ 0 alone.
        """

    @abstractmethod
    def validation_documents(self) -> list[bytes]:
        """The held-out documents in use (see DataConfig.validation_bytes): the same at every call and in
        every run, at least one, none empty, only the last one possibly cut short."""
