"""The bytes of a file as its reader gets them: decompressed, UTF-16 and UTF-32 as UTF-8, lone CR as line ends."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from abstractinator.data.data_config import DataError
from abstractinator.data.formats import compressed, units
from abstractinator.data.formats.errors import damaged, unreadable_file

_SKIP_BYTES = 2**20  # read at once on the way to an offset
_HEAD_BYTES = 4096
_ENCODINGS = [  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Source:
    """A file, and what lies between its bytes and those that are read.

    compression: "gzip", "bzip2", "xz", "zstd" or None. encoding: "utf-16", "utf-32", or None for bytes as they are.
    lone_returns: whether its lines end in CR alone.
    """

    path: Path
    compression: str | None = None
    encoding: str | None = None
    lone_returns: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether offsets and sizes are those of the file on disk."""
        return self.compression is None and self.encoding is None

    @property
    def unit_bytes(self) -> int:
        """The size of a unit. A compressed file is read from its start for each unit, so its units are larger."""
        return units.UNIT_BYTES if self.is_plain else 8 * units.UNIT_BYTES

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[BinaryIO]:
        """A buffered stream from an offset in bytes. DataError, also from the block, where the file cannot be read."""
        try:
            with self._opened() as file:
                if file.seekable():
                    file.seek(offset)
                else:
                    _skip(file, offset)
                yield file
        except UnicodeError as error:
            raise damaged(self.path, f"{self.encoding}", error) from None
        except compressed.ERRORS as error:
            raise damaged(self.path, f"{self.compression}", error) from None
        except OSError as error:
            if error.errno is None and self.compression is not None:
                raise damaged(self.path, self.compression, error) from None
            raise unreadable_file(self.path, error) from None

    def read(self, offset: int = 0, size: int = -1) -> bytes:
        """`size` bytes, or all, from an offset. Raises DataError where the file cannot be read."""
        with self.open(offset) as file:
            return file.read(size)

    def _opened(self) -> BinaryIO:
        file: Any
        if self.compression is None:
            file = self.path.open("rb")
        else:
            file = compressed.open_decompressed(self.path, self.compression)
        if self.encoding is not None:
            file = io.BufferedReader(_Transcoded(file, self.encoding), _SKIP_BYTES)
        if self.lone_returns:
            file = io.BufferedReader(_LineEnds(file), _SKIP_BYTES)
        return cast(BinaryIO, file)


def open_source(path: Path, compression: str | None, *, is_text: bool) -> Source:
    """The source of a regular file. compression: by its name. is_text: whether its contents are text, so that a
    compression that its name does not tell, an encoding and line ends are recognised.

    Raises DataError where it cannot be read and for a pointer to a file that was not fetched.
    """
    head = Source(path).read(size=_HEAD_BYTES)
    if head.startswith(_LFS_POINTER):
        raise DataError(f"{path} is a Git-LFS pointer, not the data: fetch them with `git lfs pull`, or leave it out")
    if not is_text:
        return Source(path, compression)
    source = Source(path, compression or compressed.compression_by_content(head))
    if source.compression is not None:
        head = source.read(size=_HEAD_BYTES)
    return replace(source, encoding=_encoding(head))


def with_line_ends(source: Source) -> Source:
    """The same source, in which CR ends lines where LF does not."""
    head = source.read(size=units.UNIT_BYTES)
    return replace(source, lone_returns=b"\r" in head and b"\n" not in head)


def _encoding(head: bytes) -> str | None:
    """The encoding of text that begins with a byte-order mark, if the bytes after it make sense in it."""
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            try:
                codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < _HEAD_BYTES)
            except UnicodeError:
                return None
            return encoding
    return None


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0 and (read := file.read(min(count, _SKIP_BYTES))):
        count -= len(read)


class _Converted(io.RawIOBase):
    """A stream whose bytes are converted as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ready = file, b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        ended = False
        while not self._ready and not ended:
            read = self._file.read(_SKIP_BYTES)
            self._ready, ended = self._convert(read), not read
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _convert(self, read: bytes) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        self._file.close()
        super().close()


class _Transcoded(_Converted):
    """UTF-16 or UTF-32 as UTF-8, without the byte-order mark; a lone surrogate becomes its three bytes."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        super().__init__(file)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def _convert(self, read: bytes) -> bytes:
        return self._decoder.decode(read, final=not read).encode("utf-8", "surrogatepass")


class _LineEnds(_Converted):
    """CR as LF."""

    def _convert(self, read: bytes) -> bytes:
        return read.replace(b"\r", b"\n")
