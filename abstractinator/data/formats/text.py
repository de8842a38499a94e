"""A text or source file is one document, byte for byte: no newline translation.

A file larger than `LARGE_BYTES` is one document in several parts, so that it is never held whole. Each part stands
between BOS and EOS like a document; all parts are on one side of the split.
"""

from dataclasses import dataclass
from hashlib import blake2b

from abstractinator.data.data_config import DataError
from abstractinator.data.document import Document, hash_of
from abstractinator.data.formats.source import Source
from abstractinator.data.formats.units import DocumentUnit

LARGE_BYTES = 128 * 2**20
PART_BYTES = 32 * 2**20
_LINE_BYTES = 2**16  # a part ends with a line, if the line ends within this


@dataclass(frozen=True)
class TextUnit(DocumentUnit):
    """A file that is one document."""

    name: str
    source: Source
    size: int
    count: int = 1

    def read(self) -> list[bytes]:
        return [self.source.read()]


@dataclass(frozen=True)
class LargeText:
    """A document that is read in parts; implements WholeText."""

    source: Source
    size: int
    hash: int

    def read(self, start: int, stop: int) -> bytes:
        return self.source.read(start, max(0, stop - start))


@dataclass(frozen=True)
class TextPartUnit(DocumentUnit):
    """A part of a large document."""

    name: str
    whole: LargeText
    offset: int
    size: int
    count: int = 1

    def read(self) -> list[bytes]:
        text = self.whole.read(self.offset, self.offset + self.size)
        if len(text) != self.size:
            raise DataError(f"{self.name} changed while it was in use: start again on the data as they are now")
        return [text]

    def documents(self) -> list[Document]:
        return [Document(text, self.whole.hash, self.offset, self.whole) for text in self.read()]


def text_units(name: str, source: Source) -> list[DocumentUnit]:
    """The document of a file, in parts where it is large. A file whose size on disk is not that of its text, or that is
    large, is read once. Raises DataError where it cannot be read."""
    if source.is_plain:
        size = source.path.stat().st_size
        if size <= LARGE_BYTES:
            return [TextUnit(name, source, size)]
    sizes, digest = [], blake2b(digest_size=8)
    with source.open() as file:
        while part := file.read(PART_BYTES) + file.readline(_LINE_BYTES):
            sizes.append(len(part))
            digest.update(part)
    if sum(sizes) <= LARGE_BYTES:
        return [TextUnit(name, source, sum(sizes))]
    whole = LargeText(source, sum(sizes), hash_of(digest.digest()))
    return [TextPartUnit(name, whole, sum(sizes[:index]), size) for index, size in enumerate(sizes)]
