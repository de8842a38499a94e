"""Which suffixes of a file's name are read, and as what."""

from dataclasses import dataclass
from pathlib import Path

from abstractinator.data.formats import compressed

LINES = {".jsonl", ".ndjson"}
DELIMITED = {".csv", ".tsv"}
_TEXT_NAMES = """
    txt text md markdown rst tex org adoc html htm xml log yaml yml toml ini cfg
    py pyi pyx ipynb c h cc cpp cxx hpp cu cuh rs go java kt scala swift m cs fs js mjs ts jsx tsx css scss
    vue php rb pl pm lua r jl hs ml mli ex exs erl clj lisp el scm sh bash zsh fish ps1 bat sql cmake mk tf
    proto dart zig nim f f90 asm s v vhd sv
"""
TEXT = {f".{name}" for name in _TEXT_NAMES.split()}
TABLES = LINES | DELIMITED | {".json", ".parquet", ".arrow", ".tar"}
DATA = TABLES | {".txt"}  # what may be named by its split; a train.py is a document like any other


@dataclass(frozen=True)
class FileKind:
    """suffix: the one that says how a file is read, in lower case, without that of its compression; "" for none.
    compression: by its name."""

    suffix: str
    compression: str | None = None

    @property
    def is_known(self) -> bool:
        return self.suffix in TEXT | TABLES


def kind_of(path: Path) -> FileKind:
    """What a file is by its name: "a.jsonl.gz" is lines compressed by gzip."""
    suffix = path.suffix.lower()
    if suffix in compressed.TAR_SUFFIXES:
        return FileKind(".tar", compressed.TAR_SUFFIXES[suffix])
    if suffix in compressed.SUFFIXES:
        return FileKind(Path(path.stem).suffix.lower(), compressed.SUFFIXES[suffix])
    return FileKind(suffix)
