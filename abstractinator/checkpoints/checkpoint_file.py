"""Checkpoint files: written atomically, loaded without executing code, and checked for every flipped bit.

The file is what `torch.save` writes, an uncompressed zip archive, and holds one dict: the caller's payload
with `format` and `format_version`. Every record of the archive carries a CRC32, which torch does not check;
`load_checkpoint` does.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from abstractinator.atomic_file import atomic_write
from abstractinator.checkpoints.checkpoint_folder import checkpoints, latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.messages import first_line

FORMAT = "abstractinator-checkpoint"
FORMAT_VERSION = 4  # 4: kinds of model; names of the parameters and of the settings have changed
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


def save_checkpoint(path: str | Path, payload: dict[str, Any]) -> None:
    """Writes `payload` (dicts, lists, tensors, numbers, text) to `path` atomically.

    The bytes go to a temporary name in the same folder, reach the disk, and only then take the name `path`:
    a crash, a full disk or a kill at any moment leaves every earlier file as it was. Temporary files of killed
    processes are removed. Raises CheckpointError when the folder cannot be written to, TypeError for a value
    that `load_checkpoint` would refuse. A KeyboardInterrupt stays one.
    """
    path = Path(path)
    _check_plain(payload, "payload")
    content = {**payload, "format": FORMAT, "format_version": FORMAT_VERSION}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(_cannot_write(path, error)) from error
    except RuntimeError as error:  # torch's zip writer answers a failed write with its own error
        if not isinstance(error.__context__, OSError):
            raise
        raise CheckpointError(_cannot_write(path, error.__context__)) from error


def _check_plain(value: Any, where: str) -> None:
    """Finds at the save, and not at the resume, what `weights_only` cannot load, such as a numpy number."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (
        int,
        float,
        str,
        bool,
        bytes,
        type(None),
    ):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers and text")


def _remove_stale(folder: Path) -> None:
    """Removes the temporaries of processes that are no more; those of living ones may be in use."""
    for entry in folder.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])):
            entry.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a save of this process is over when the next begins
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the file system can sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> str:
    earlier = latest_checkpoint(path.parent) if path.parent.is_dir() else None
    kept = f"the latest whole checkpoint is {earlier}" if earlier else "there is no earlier checkpoint"
    advice = "free disk space or choose another checkpoint_dir, then resume"
    return f"cannot write {path} ({error.strerror or error}); {kept}; {advice}"


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The payload of a checkpoint, its tensors on the CPU, checked byte by byte; no code of the file runs.

    Raises CheckpointError for a missing, truncated, damaged or foreign file and for one of another version.
    """
    return _load(Path(path), mapped=False)


def map_checkpoint(path: str | Path) -> dict[str, Any]:
    """As `load_checkpoint`, but tensors stay in the file and are read when they are used. Flipped bits are not found.

    Fast for a file of any size; for settings and progress, not for weights.
    """
    return _load(Path(path), mapped=True)


def _load(path: Path, mapped: bool) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(_missing(path))
    _check_records(path, read=not mapped)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        why = "it holds objects that only running its code could restore"
        raise CheckpointError(f"{path} was written by another program and is not loaded: {why}") from error
    except Exception as error:  # torch answers malformed contents with errors of every kind
        raise CheckpointError(f"{path} is not a checkpoint: {first_line(error)}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program: it lacks the mark '{FORMAT}'")
    if version != FORMAT_VERSION:
        writer = f"abstractinator {content.get('version', 'of unknown version')}"
        newer = "update this program" if version > FORMAT_VERSION else f"train again, or use {writer}"
        advice = f"this program reads version {FORMAT_VERSION}: {newer}"
        raise CheckpointError(f"{path}, written by {writer}, has checkpoint format version {version}; {advice}")
    if not all(_is_whole(tensor) for tensor in _tensors(content)):
        raise CheckpointError(f"{path} is not a checkpoint: it has a tensor whose values it does not hold")
    return content


def _check_records(path: Path, read: bool) -> None:
    """Checks that records are stored as they are and fit into the file, so that a small file cannot become large.

    read: whether every record is compared with its CRC32, so that a wrong weight is an error and never silent.
    """
    others = [other for _, other in checkpoints(path.parent) if other.name != path.name]
    such_as = f", such as {others[-1]}" if others else ""
    damaged = CheckpointError(f"{path} is damaged or cut short: use an earlier checkpoint{such_as}")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            is_plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            fits = sum(record.file_size for record in records) <= path.stat().st_size
            is_whole = not (is_plain and fits and read) or archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        with open(path, "rb") as file:
            is_archive = file.read(2) == b"PK"
        raise (damaged if is_archive else CheckpointError(f"{path} is not a checkpoint")) from error
    if not is_plain:
        raise CheckpointError(f"{path} has compressed records, which this program does not write; not loaded")
    if not (fits and is_whole):
        raise damaged


def _tensors(content: dict[Any, Any]) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts and lists, however deep."""
    stack: list[Any] = [content]
    seen = set()
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            stack += value.values() if isinstance(value, dict) else value


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether the file stores every value of a tensor separately; a repeated one could be of any size."""
    is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return is_plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _missing(path: Path) -> str:
    if path.is_dir():
        latest = latest_checkpoint(path)
        return (
            f"{path} is a folder; give a file, such as {latest}" if latest else f"{path} holds no checkpoint_step….pt"
        )
    names = [each.name for _, each in checkpoints(path.parent)]
    there = f"in {path.parent} there are: {', '.join(names[-10:])}" if names else f"{path.parent} holds no checkpoints"
    return f"there is no file {path}; {there}"
