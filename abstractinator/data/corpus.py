"""What a corpus is: training documents in a shuffled, resumable order, and held-out documents."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abstractinator.data.data_config import DataConfig


class DocumentStream(ABC):
    """The training documents of one epoch, in order: an iterator of non-empty `bytes`."""

    def __iter__(self) -> "DocumentStream":
        return self

    @abstractmethod
    def __next__(self) -> bytes:
        """The next document. Raises StopIteration after the last, DataError when it cannot be read."""

    @abstractmethod
    def position(self) -> Any:
        """Where the next document lies: a small value of plain Python (int, str, None, list, dict) that
        `Corpus.train_documents` takes to go on from here."""


class Corpus(ABC):
    """Text split by document into training and validation."""

    name: str  # for messages and logs
    fingerprint: str  # of its names, counts and sizes, and of the split; positions of another do not fit
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


def open_corpus(config: DataConfig, exclude: Sequence[Path] = ()) -> Corpus:
    """The corpus that `config` names, ready to read. exclude: folders inside data.path that are not read, such as those
    to which a training writes.

    Raises DataError, saying what to do, when there is nothing there, nothing in it, or no way to it.
    """
    if config.dataset_name is not None:
        from abstractinator.data.hub_corpus import HubCorpus

        return HubCorpus(config)
    from abstractinator.data.local_corpus import LocalCorpus

    if config.path is not None:
        from abstractinator.data.document_files import find_units

        units = find_units(config.path, config.text_column_name, exclude)
        return LocalCorpus(config.path, units.train, units.validation, config)
    from abstractinator.data.embedded_corpus import embedded_units

    return LocalCorpus("the embedded corpus", embedded_units(), None, config)
