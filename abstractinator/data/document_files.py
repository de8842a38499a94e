"""From a path to units of documents: which files of a folder are read, as what, for which split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abstractinator.data.data_config import DataError
from abstractinator.data.folder import Files, files_below
from abstractinator.data.formats.errors import unreadable_file
from abstractinator.data.formats.reading import file_units
from abstractinator.data.formats.units import DocumentUnit
from abstractinator.data.split_names import SplitFiles, files_by_split

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitUnits:
    """The units at a path. `validation` is None where the files are not named by split."""

    train: list[DocumentUnit]
    validation: list[DocumentUnit] | None


def find_units(
    path: str, column: str, exclude: Sequence[Path] = (), suffixes: Sequence[str] = (), any_file: bool = False
) -> SplitUnits:
    """The documents at a file or folder, in the order of their relative names.

    A file of any name can be given itself. In a folder, hidden files, files of an unknown suffix that is not among
    `suffixes` (unless `any_file`), outputs of trainings and the folders in `exclude` are left out; log messages name
    them. Raises DataError for a missing path and for files that cannot be read.
    """
    root = _existing(path)
    reader = _Reader(root, column)
    if not root.is_dir():
        units = reader.read_given()
        reader.log_encodings()
        return SplitUnits(units, None)
    files = files_below(root, exclude, suffixes, any_file)
    if not files.read:
        raise DataError(_no_text(root, files))
    split_files = files_by_split(files.read)
    _log_left_out(root, files, split_files)
    splits = split_files.splits
    train = reader.read(splits.get("train", files.read))
    validation = reader.read(splits["validation"]) if "validation" in splits else None
    reader.log_encodings()
    return SplitUnits(train, validation)


def _existing(path: str) -> Path:
    try:
        root = Path(path).expanduser()
        exists = root.exists()
    except RuntimeError:  # ~name/… of an unknown user
        raise DataError(f"data.path={path!r}: there is no such home folder; check the spelling") from None
    except OSError as error:
        raise unreadable_file(Path(path), error) from None
    if not exists:
        raise DataError(f"data.path={path!r} does not exist (from the folder {Path.cwd()}); check the spelling")
    return root


@dataclass
class _Reader:
    """Turns files into units, and remembers which of them are read in another encoding than theirs."""

    root: Path
    column: str
    transcoded: list[Path] = field(default_factory=list)

    def read_given(self) -> list[DocumentUnit]:
        return self._units(self.root, self.root.name, given=True)

    def read(self, files: list[Path]) -> list[DocumentUnit]:
        return [unit for path in files for unit in self._units(self.root / path, path.as_posix(), given=False)]

    def _units(self, path: Path, name: str, *, given: bool) -> list[DocumentUnit]:
        units, source = file_units(path, name, self.column, given=given)
        if source.encoding is not None:
            self.transcoded.append(Path(name))
        return units

    def log_encodings(self) -> None:
        if self.transcoded:
            _log.warning("%s: UTF-16 or UTF-32 text is read as UTF-8: %s", self.root, _some(self.transcoded))


def _no_text(root: Path, files: Files) -> str:
    seen = f"{len(files.others)} files" if files.others else "no visible files"
    if files.others:
        suffix = files.others[0].suffix or ".txt"
        return (
            f"{root} holds no text: {seen}, none of them .parquet, .jsonl, .json, .csv, .txt or another text or source "
            f"file; read them as bytes with data.suffixes=['{suffix}'] or data.any_file=True"
        )
    return f"{root} holds no text: {seen}; point data.path= at some text"


def _log_left_out(root: Path, files: Files, split_files: SplitFiles) -> None:
    """Names the files that are not used, and those that are not used as their names suggest."""
    splits = split_files.splits
    if files.others:
        _log.warning("%s: files that are not known as text are passed over: %s", root, _some(files.others))
    if files.outputs:
        _log.warning("%s: outputs of trainings are passed over: %s", root, _some(files.outputs))
    if not splits:
        if split_files.unsure:
            _log.warning(
                "%s: these files are read like all others, though their names are a split's; to use them as splits, "
                "name the others train: %s",
                root,
                _some(split_files.unsure),
            )
        return
    used = {path for paths in splits.values() for path in paths}
    if unread := [path for path in files.read if path not in used]:
        _log.warning(
            "%s has files named by split, such as %s; those that are not stay unread: %s",
            root,
            splits["train"][0],
            _some(unread),
        )


def _some(files: list[Path]) -> str:
    """The number of files, and the first of them, in words."""
    return f"{len(files)}, such as {', '.join(path.as_posix() for path in files[:3])}"
