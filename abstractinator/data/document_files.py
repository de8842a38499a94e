"""From a path to units of documents: which files of a folder are read, as what, for which split."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abstractinator.data.data_config import DataError
from abstractinator.data.document_units import (
    DocumentUnit,
    MemoryUnit,
    TextFileUnit,
    json_lines_units,
    parquet_units,
    read_bytes,
    record_text,
    unreadable_file,
)

_log = logging.getLogger(__name__)

_LINES = {".jsonl", ".ndjson"}
_TEXT_NAMES = """
    txt text md markdown rst tex org adoc html htm xml csv tsv log yaml yml toml ini cfg
    py pyi pyx ipynb c h cc cpp cxx hpp cu cuh rs go java kt scala swift m cs fs js mjs ts jsx tsx css scss
    vue php rb pl pm lua r jl hs ml mli ex exs erl clj lisp el scm sh bash zsh fish ps1 bat sql cmake mk tf
    proto dart zig nim f f90 asm s v vhd sv
"""
_TEXT = {f".{name}" for name in _TEXT_NAMES.split()}
_TABLES = {".parquet", ".json"} | _LINES
_COMPRESSED = {f".{name}" for name in ["gz", "tgz", "bz2", "xz", "zst", "lz4", "br", "zip", "7z", "tar"]}
# "train.txt", "train-00000-of-00002.parquet", "validation_en.jsonl"; not "training-notes.txt", and no
# source file: a train.py is a document like any other.
_SPLIT_STEM = re.compile(r"(train|validation|valid|dev|test)(?![A-Za-z])")


@dataclass(frozen=True)
class SplitUnits:
    """What lies at a path. `validation` is None where the files are not named by split."""

    train: list[DocumentUnit]
    validation: list[DocumentUnit] | None


def find_units(path: str, column: str, exclude: Sequence[Path] = ()) -> SplitUnits:
    """The documents at a file or folder, in the order of their relative names.

    A file of any name can be given itself; of a folder, hidden files and suffixes that are not known as
    text are passed over. Raises DataError for a missing path and for files that cannot be read.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"data.path={path!r} does not exist (from the folder {Path.cwd()}); check the spelling")
    if not root.is_dir():
        return SplitUnits(_file_units(root, root.name, column, given=True), None)
    files = _files_below(root, {folder.resolve() for folder in exclude})
    splits = _files_by_split(files)
    if "train" not in splits:
        return SplitUnits(_all_units(root, files, column), None)
    named = {path for paths in splits.values() for path in paths}
    if others := [path for path in files if path not in named]:
        _log.warning(
            "%s has files named by split, such as %s; those that are not stay unread: %s",
            root,
            splits["train"][0],
            _some(others),
        )
    validation = _all_units(root, splits["validation"], column) if "validation" in splits else None
    return SplitUnits(_all_units(root, splits["train"], column), validation)


def _files_below(root: Path, exclude: set[Path]) -> list[Path]:
    """The readable kinds of files below `root`, relative to it and sorted. DataError when there are none."""
    found = [
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file() and exclude.isdisjoint((path.resolve(), *path.resolve().parents))
    ]
    visible = [path for path in found if not any(part.startswith(".") for part in path.parts)]
    known = sorted((path for path in visible if path.suffix.lower() in _TEXT | _TABLES), key=Path.as_posix)
    if not known:
        raise DataError(
            f"{root} holds no text: {len(found)} files, none of them .parquet, .jsonl, .json, .txt or "
            "another text or source file; give the file itself if it is text under another name"
        )
    if others := sorted(set(visible) - set(known)):
        _log.warning("%s: files that are not known as text are passed over: %s", root, _some(others))
    return known


def _some(files: list[Path]) -> str:
    """How many files, and the first of them, in words."""
    return f"{len(files)}, such as {', '.join(path.as_posix() for path in files[:3])}"


def _files_by_split(files: list[Path]) -> dict[str, list[Path]]:
    """The data files whose names begin with a split's name, under "train", "validation", "test"."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT_STEM.match(path.name)
        if match and path.suffix.lower() in _TABLES | {".txt"}:
            name = {"valid": "validation", "dev": "validation"}.get(match[1], match[1])
            splits.setdefault(name, []).append(path)
    return splits


def _all_units(root: Path, files: list[Path], column: str) -> list[DocumentUnit]:
    return [unit for path in files for unit in _file_units(root / path, path.as_posix(), column, given=False)]


def _file_units(path: Path, name: str, column: str, *, given: bool) -> list[DocumentUnit]:
    """The units of one file by its suffix. `given`: the user named this very file."""
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        raise DataError(f"{path} is compressed: unpack it, and give what is in it")
    try:
        if suffix == ".parquet":
            return list(parquet_units(name, path, column))
        if suffix in _LINES:
            return list(json_lines_units(name, path, column))
        if suffix == ".json":
            return _json_units(path, name, column, given=given)
        return [TextFileUnit(name, path, path.stat().st_size)]
    except OSError as error:
        raise unreadable_file(path, error) from None


def _json_units(path: Path, name: str, column: str, *, given: bool) -> list[DocumentUnit]:
    """A .json file: a list of records, one record, or, under the wrong suffix, a record a line.

    One that was only found in a folder and holds no such records (settings, notebooks: source trees are
    full of them) is a text document.
    """
    data = read_bytes(path)
    try:
        content = json.loads(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    except ValueError as error:
        if data.lstrip().startswith(b"{") and b"\n" in data.strip():
            return list(json_lines_units(name, path, column))
        if given:
            raise DataError(f"{path}: not JSON ({error}); repair it, or name it .txt to read it as text") from None
        return [TextFileUnit(name, path, len(data))]
    records = content if isinstance(content, list) else [content]
    if not given and not any(isinstance(record, dict) and column in record for record in records[:1]):
        return [TextFileUnit(name, path, len(data))]
    documents = tuple(record_text(record, column, f"{path}, record {i}") for i, record in enumerate(records, 1))
    return [MemoryUnit(name, documents)]
