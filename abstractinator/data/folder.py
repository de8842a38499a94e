"""The files of a folder: which are there, which are read, and which are outputs of trainings."""

import fnmatch
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abstractinator.data.data_config import DataError
from abstractinator.data.formats.errors import unreadable_file
from abstractinator.data.formats.reading import check_regular
from abstractinator.data.formats.suffixes import kind_of

_TRACKING = "mlruns"  # the folder of tracked metrics, samples and plots
_CHECKPOINTS = "checkpoint_step*.pt"
_SAVED_FILES = ("state.json", "dataset_info.json")  # beside the arrow files that `save_to_disk` of datasets writes
_SAVED_SPLITS = "dataset_dict.json"


@dataclass
class Files:
    """The visible files of a folder, relative to it and sorted: `read`, and `others`, whose kind is not known.

    outputs: folders that a training wrote.
    """

    read: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)


def files_below(root: Path, exclude: Sequence[Path], suffixes: Sequence[str], any_file: bool) -> Files:
    """The files in a folder and all folders below it, links to folders included, each folder once.

    exclude: folders that are left out. suffixes, any_file: see DataConfig. Raises DataError for a folder that cannot be
    read, a link that leads nowhere, and a pipe, socket or device that has the name of a file to be read.
    """
    excluded = {folder.resolve() for folder in exclude}
    if not excluded.isdisjoint((root.resolve(), *root.resolve().parents)):
        raise DataError(
            f"{root} is where this run writes its checkpoints or metrics, which are not told apart from text there; "
            "choose another data.path= or checkpoint_dir="
        )
    files, wanted = Files(), {suffix.lower() for suffix in suffixes}
    status = _status(root)
    for path in _walk(root, root, excluded, files, {(status.st_dev, status.st_ino)}):
        if kind_of(path).is_known or path.suffix.lower() in wanted or any_file:
            check_regular(path)
            files.read.append(path.relative_to(root))
        else:
            files.others.append(path.relative_to(root))
    files.read.sort(key=Path.as_posix)
    files.others.sort(key=Path.as_posix)
    return files


def _walk(root: Path, folder: Path, excluded: set[Path], files: Files, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """The visible files below a folder. seen: device and inode of the folders that were read, so that links may lead
    back to them."""
    names = _names(folder)
    if folder != root and (folder.name == _TRACKING or fnmatch.filter(names, _CHECKPOINTS)):
        files.outputs.append(folder.relative_to(root))
        return
    saved = _saved_files(folder, names)
    for name in sorted(names):
        path = folder / name
        if name.startswith("."):
            continue
        status = _status(path)
        if not stat.S_ISDIR(status.st_mode):
            if saved is None or name in saved:
                yield path
        elif (key := (status.st_dev, status.st_ino)) not in seen and path.resolve() not in excluded:
            seen.add(key)
            yield from _walk(root, path, excluded, files, seen)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise unreadable_file(folder, error) from None


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = os.readlink(path)
            raise DataError(f"{path} is a link to {target}, which does not exist; repair or remove it") from None
        raise unreadable_file(path, error) from None


def _saved_files(folder: Path, names: list[str]) -> set[str] | None:
    """What is read of a folder that `save_to_disk` of datasets wrote, or its splits; None for any other folder."""
    if _SAVED_SPLITS in names:
        return set(names) - {_SAVED_SPLITS}
    if not set(_SAVED_FILES) <= set(names) or not any(name.endswith(".arrow") for name in names):
        return None
    try:
        state = json.loads((folder / _SAVED_FILES[0]).read_bytes())
        files = {str(file["filename"]) for file in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder / _SAVED_FILES[0]} does not list the files of the saved data set; save it again"
        ) from None
    if missing := sorted(files - set(names)):
        raise DataError(f"{folder} lacks {missing[0]}, a file of the saved data set; save or copy it again")
    return files
