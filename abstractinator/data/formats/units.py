"""Units of documents: the parts of a local corpus that are read whole (a file, a row group, a few lines).

A corpus of any size is a list of units. A unit knows, before it is read, its number of documents and its approximate
size; so a corpus of many GB is opened without holding it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from abstractinator.data.document import Document

UNIT_BYTES = 8 * 2**20  # lines, rows and members of archives are read in units of about this size


class DocumentUnit(ABC):
    """Some documents that are read together."""

    name: str  # of the file, relative to the corpus: the same wherever the corpus lies
    count: int  # documents in it, empty ones included
    size: int  # about how many bytes its text takes

    @abstractmethod
    def read(self) -> list[bytes]:
        """All its documents in order. Raises DataError where they cannot be read."""

    def documents(self) -> list[Document]:
        """All its documents in order, with their hashes."""
        return [Document.of(text) for text in self.read()]


@dataclass(frozen=True)
class MemoryUnit(DocumentUnit):
    """Documents that are in memory already."""

    name: str
    texts: tuple[bytes, ...]

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.texts)

    @property
    def size(self) -> int:  # type: ignore[override]
        return sum(map(len, self.texts))

    def read(self) -> list[bytes]:
        return list(self.texts)
