"""Splits by the names of files and folders, as the Hugging Face hub lays them out.

A file belongs to a split when its name begins with the split's ("train-00000-of-00002.parquet", "Train2.txt",
"val.txt"), when its name has it elsewhere and a file of the same name has another split's ("ptb.train.txt" beside
"ptb.test.txt"), or when it lies in a folder of that name beside another split's ("train/0.parquet", "test/0.parquet").
Only data files count: a train.py is a document like any other.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from abstractinator.data.formats.suffixes import DATA, kind_of

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_AT_START = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)

_Family = tuple[str, str]  # the folder, and the names of a data set's files without splits and numbers


@dataclass(frozen=True)
class SplitFiles:
    """Files by split: "train", "validation", "test"; empty where no file belongs to "train".

    unsure: files whose names have a split's name but that belong to none by the rules.
    """

    splits: dict[str, list[Path]]
    unsure: list[Path]


@dataclass(frozen=True)
class _Candidate:
    """A split by a part of a path, valid where its family has another split."""

    split: str
    family: _Family


def files_by_split(files: list[Path]) -> SplitFiles:
    """The splits of a folder's files, whose paths are relative to it."""
    data = [path for path in files if kind_of(path).suffix in DATA]
    members: dict[_Family, set[str]] = defaultdict(set)
    candidates = {path: [*_of_folders(path), *_of_name(path)] for path in data}
    for of_path in candidates.values():
        for candidate in of_path:
            members[candidate.family].add(candidate.split)
    for path in data:  # a folder train/ beside a file validation.jsonl
        if split := _at_start(path):
            members[(path.parent.as_posix(), "*")].add(split)
    splits: dict[str, list[Path]] = defaultdict(list)
    unsure = []
    for path, of_path in candidates.items():
        certain = [each.split for each in of_path if len(members[each.family]) > 1 and "train" in members[each.family]]
        if split := next(iter(certain), None) or _at_start(path):
            splits[split].append(path)
        elif of_path:
            unsure.append(path)
    if "train" not in splits:
        return SplitFiles({}, [path for path in data if _at_start(path) or path in unsure])
    return SplitFiles(dict(splits), unsure)


def _at_start(path: Path) -> str | None:
    match = _AT_START.match(path.name)
    return _SPLITS[match[1].lower()] if match else None


def _of_folders(path: Path) -> list[_Candidate]:
    """By the folders' names, the outermost first."""
    return [
        _Candidate(_SPLITS[name.lower()], (Path(*path.parts[:depth]).as_posix(), "*"))
        for depth, name in enumerate(path.parts[:-1])
        if name.lower() in _SPLITS
    ]


def _of_name(path: Path) -> list[_Candidate]:
    """By a word anywhere in the file's name."""
    match = _WORD.search(path.name)
    if match is None:
        return []
    family = path.name[: match.start()] + "*" + path.name[match.end() :]
    return [_Candidate(_SPLITS[match[1].lower()], (path.parent.as_posix(), re.sub(r"\d+", "#", family.lower())))]
