"""Compressed files as streams of their contents."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from abstractinator.data.formats.errors import require

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
TAR_SUFFIXES = {".tgz": "gzip", ".tbz2": "bzip2", ".txz": "xz", ".tzst": "zstd"}
UNREAD = {".lz4", ".br", ".zip", ".7z", ".rar", ".z"}  # compressed, and not read here
ERRORS = (EOFError, zlib.error, lzma.LZMAError)  # of damaged files, in addition to OSError

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BZIP2 = b"1AY&SY"  # after "BZh" and a digit


def _zstd(path: Path) -> Any:
    pyarrow = require("pyarrow", f"{path}, a zstd file,")
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_OPENERS: dict[str, Callable[[Path], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": _zstd}


def compression_by_content(head: bytes) -> str | None:
    """The compression of a file that begins with these bytes (10 are enough)."""
    if head.startswith(b"BZh") and head[4:10] == _BZIP2:
        return "bzip2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def open_decompressed(path: Path, compression: str) -> BinaryIO:
    """The decompressed contents as a buffered stream; files of several frames or members are read to the end."""
    return cast(BinaryIO, _OPENERS[compression](path))
