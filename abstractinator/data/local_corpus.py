"""A corpus of local documents: shuffled as a whole, read a window at a time.

For each epoch the units are shuffled and then packed, in that order, into windows of at most `WINDOW_BYTES`; a window
is read whole, its documents are shuffled, and it is released before the next is read. A corpus below that size is one
window, kept in memory, and its documents are shuffled perfectly. Nothing is copied into a cache on disk, and memory
stays at a window (or at the largest unit, where one is larger).
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np

from abstractinator.data.corpus import Corpus, DocumentStream
from abstractinator.data.data_config import DataConfig, DataError
from abstractinator.data.document import Document
from abstractinator.data.document_split import decide_split, given_split
from abstractinator.data.formats.units import DocumentUnit

WINDOW_BYTES = 128 * 2**20


class _Windows:
    """Units in windows of memory: reads them by window and keeps the last one."""

    def __init__(self, units: Sequence[DocumentUnit]) -> None:
        self.units = units
        self._kept: tuple[list[int], list[Document]] = ([], [])

    def plan(self, seed: int, epoch: int) -> list[list[int]]:
        """The indices of the units in each window of an epoch."""
        windows: list[list[int]] = []
        room = 0
        for unit in np.random.default_rng([seed, epoch]).permutation(len(self.units)).tolist():
            if self.units[unit].size > room or not windows:
                windows.append([])
                room = WINDOW_BYTES
            windows[-1].append(unit)
            room -= self.units[unit].size
        return windows

    def read(self, window: list[int]) -> list[Document]:
        """The documents of a window, unshuffled: in the order of its units in the corpus."""
        key = sorted(window)
        if key != self._kept[0]:
            self._kept = ([], [])  # releases the old window before the new one is read
            self._kept = (key, [document for unit in key for document in self._read_unit(self.units[unit])])
        return self._kept[1]

    def read_all(self) -> Iterator[list[Document]]:
        """Every window of one fixed order, so a prefix of it is a fair sample."""
        return (self.read(window) for window in self.plan(seed=0, epoch=0))

    @staticmethod
    def _read_unit(unit: DocumentUnit) -> list[Document]:
        documents = unit.documents()
        if len(documents) != unit.count:
            raise DataError(f"{unit.name} changed while it was in use: start again on the data as they are now")
        return documents


class LocalCorpus(Corpus):
    """Documents of local units. `validation_units` None splits the others by document."""

    def __init__(
        self,
        name: str,
        units: Sequence[DocumentUnit],
        validation_units: Sequence[DocumentUnit] | None,
        config: DataConfig,
    ) -> None:
        self.name = name
        self.size_bytes = sum(unit.size for unit in units)
        self.settings = config.choice_of_text()
        self._windows = _Windows(units)
        if validation_units is None:
            self._split = decide_split(self._windows.read_all(), config, name)
        else:
            self._split = given_split(_Windows(validation_units).read_all(), config, name)
            if not any(document.text for window in self._windows.read_all() for document in window):
                raise DataError(f"{name} has no text in its training files; point data.path= at some text")
        parts = [[unit.name, unit.count, unit.size] for unit in units]
        held_out = [Document.of(text).hash for text in self._split.validation]
        described = json.dumps([parts, self._split.threshold, self._split.head_bytes, held_out])
        self.fingerprint = blake2b(described.encode(), digest_size=16).hexdigest()

    def validation_documents(self) -> list[bytes]:
        return list(self._split.validation)

    def train_documents(self, epoch: int, seed: int, position: Any = None) -> "_LocalStream":
        return _LocalStream(self, epoch, seed, 0 if position is None else position)

    def _training_window(self, window: list[int]) -> list[bytes]:
        """The window's documents as trained on; a held-out one is empty, so that indices stay the same."""
        return [self._split.training_part(document) for document in self._windows.read(window)]


class _LocalStream(DocumentStream):
    """One epoch of a LocalCorpus. A position is an index into the epoch's order of all documents, held-out ones
    included."""

    def __init__(self, corpus: LocalCorpus, epoch: int, seed: int, index: int) -> None:
        self._corpus, self._epoch, self._seed, self._index = corpus, epoch, seed, index
        self._plan = corpus._windows.plan(seed, epoch)
        units = corpus._windows.units
        self._ends = list(accumulate(sum(units[unit].count for unit in window) for window in self._plan))
        self._documents: list[bytes] = []  # of the open window, in the epoch's order
        self._first = self._end = 0  # the indices of the open window; none is open yet

    def position(self) -> int:
        return self._index

    def __next__(self) -> bytes:
        while True:
            if not self._first <= self._index < self._end:
                self._open_window()
            document = self._documents[self._index - self._first]
            self._index += 1
            if document:
                return document

    def _open_window(self) -> None:
        window = bisect_right(self._ends, self._index)
        if window == len(self._ends):
            raise StopIteration
        self._documents = []
        documents = self._corpus._training_window(self._plan[window])
        order = np.random.default_rng([self._seed, self._epoch, window]).permutation(len(documents))
        self._documents = [documents[index] for index in order.tolist()]
        self._end = self._ends[window]
        self._first = self._end - len(documents)
