"""The split by document: a document is held out when the hash of its text is small.

The side of a document depends on its text and nothing else, so it survives reordering, renaming and
resuming, and exact duplicates are never on both sides. All parts of a large document are on one side.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from abstractinator.data.data_config import DataConfig, DataError
from abstractinator.data.document import Document

_log = logging.getLogger(__name__)

HASHES = 2**64  # document hashes are 0 … HASHES − 1


@dataclass(frozen=True)
class DocumentSplit:
    """Which documents are held out, and those of them that are used for validation."""

    threshold: int  # hashes below it are held out; 0 holds out none
    validation: list[bytes]
    head_bytes: int | None = None  # of a corpus of one document: its training part; the rest is held out

    def training_part(self, document: Document) -> bytes:
        """What of the document is trained on: all, its head, or nothing (then the result is empty)."""
        if document.hash < self.threshold:
            return b""
        if self.head_bytes is None:
            return document.text
        return document.text[: max(0, self.head_bytes - document.offset)]


@dataclass
class _Seen:
    """What a pass over (part of) a corpus has read so far."""

    threshold: int
    held_out: dict[int, bytes] = field(default_factory=dict)  # by hash: duplicates count once
    lowest: Document | None = None
    highest: Document | None = None

    def add(self, document: Document) -> None:
        if not document.text:
            return
        if document.hash < self.threshold and document.offset == 0:  # the first part stands for a large document
            self.held_out[document.hash] = document.text
        if self.lowest is None or document.hash < self.lowest.hash:
            self.lowest = document
        if self.highest is None or document.hash > self.highest.hash:
            self.highest = document

    def suffices(self, validation_bytes: int) -> bool:
        has_training = self.highest is not None and self.highest.hash >= self.threshold
        return has_training and sum(map(len, self.held_out.values())) >= validation_bytes


def decide_split(batches: Iterable[Iterable[Document]], config: DataConfig, name: str) -> DocumentSplit:
    """Decide the split from batches of documents; batches are drawn until there is enough to validate on.

    Where a whole small corpus has no document on one side by its hash, the document with the lowest
    (highest) hash goes there. A corpus of one distinct document is cut: its tail, from the start of a
    line where it has lines, is held out. Raises DataError when there is no text at all.
    """
    seen = _Seen(int(config.validation_fraction * HASHES))
    for batch in batches:
        for document in batch:
            seen.add(document)
        if seen.suffices(config.validation_bytes):
            break
    if seen.lowest is None or seen.highest is None:
        raise DataError(f"{name} holds no text: it has no non-empty document; point data.path= at some text")
    if seen.lowest.hash == seen.highest.hash:
        return _cut_one(seen.lowest, config, name)
    threshold = seen.threshold
    if not seen.held_out:
        threshold = seen.lowest.hash + 1
        seen.held_out[seen.lowest.hash] = seen.lowest.slice(0, config.validation_bytes)
    elif seen.highest.hash < threshold:
        threshold = seen.highest.hash
        del seen.held_out[threshold]
    return DocumentSplit(threshold, take_validation(seen.held_out, config))


def given_split(validation: Iterable[Iterable[Document]], config: DataConfig, name: str) -> DocumentSplit:
    """The split where the data come with validation documents of their own: nothing else is held out.

    Raises DataError when there is no validation text.
    """
    found: dict[int, bytes] = {}
    for batch in validation:
        found |= {document.hash: document.text for document in batch if document.text and document.offset == 0}
        if sum(map(len, found.values())) >= config.validation_bytes:
            break
    if not found:
        raise DataError(f"{name} has no text in its validation split; remove that split to hold out documents")
    return DocumentSplit(0, take_validation(found, config))


def take_validation(documents: dict[int, bytes], config: DataConfig) -> list[bytes]:
    """At most `validation_bytes` of the documents, in the order of their hashes; see DataConfig."""
    taken: list[bytes] = []
    room = config.validation_bytes
    for _, text in sorted(documents.items()):
        taken.append(text[:room])
        room -= len(taken[-1])
        if room == 0:
            break
    return taken


def _cut_one(document: Document, config: DataConfig, name: str) -> DocumentSplit:
    size = document.size
    if size < 2:
        raise DataError(f"{name} holds a single byte; training needs text to learn from and text to validate on")
    tail = min(max(1, round(size * config.validation_fraction)), config.validation_bytes)
    cut = size - tail
    before = document.slice(max(0, cut - tail - 1), cut)
    if b"\n" in before:  # begin the tail a little earlier rather than inside a line
        cut -= len(before) - before.rindex(b"\n") - 1
    _log.warning("%s is one document: its last %d bytes of %d are held out", name, size - cut, size)
    return DocumentSplit(0, [document.slice(cut, size)[: config.validation_bytes]], head_bytes=cut)
