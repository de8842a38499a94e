"""A document: its bytes, and the hash by which it is held out or not."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol


class WholeText(Protocol):
    """A document that is too large to be held whole."""

    @property
    def size(self) -> int: ...  # in bytes

    @property
    def hash(self) -> int: ...  # of all its bytes, as `hash_of` has it

    def read(self, start: int, stop: int) -> bytes: ...  # DataError where that fails


def hash_of(digest: bytes) -> int:
    """The hash of a document, from a blake2b digest of 8 bytes: 0 … 2⁶⁴ − 1."""
    return int.from_bytes(digest, "big")


@dataclass(frozen=True, slots=True)
class Document:
    """A document's bytes and their hash; or a part of a large one, with the hash of the whole.

    offset: of `text` in the whole document, in bytes. whole: the document of which this is a part.
    """

    text: bytes
    hash: int
    offset: int = 0
    whole: WholeText | None = None

    @classmethod
    def of(cls, text: bytes) -> "Document":
        return cls(text, hash_of(blake2b(text, digest_size=8).digest()))

    @property
    def size(self) -> int:
        """Bytes of the whole document."""
        return len(self.text) if self.whole is None else self.whole.size

    def slice(self, start: int, stop: int) -> bytes:
        """Bytes of the whole document. Raises DataError where they cannot be read."""
        return self.text[start:stop] if self.whole is None else self.whole.read(start, min(stop, self.size))
