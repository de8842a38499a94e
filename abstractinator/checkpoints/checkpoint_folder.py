"""A folder of checkpoints: which there are, who writes to it, which are kept and which are moved away."""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from abstractinator.atomic_file import atomic_write
from abstractinator.checkpoints.errors import CheckpointError

_log = logging.getLogger(__name__)
_STEP = re.compile(r"checkpoint_step(\d+)\.pt")


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The `checkpoint_step{N}.pt` with the largest N in `folder`, or None."""
    found = checkpoints(folder)
    return found[-1][1] if found else None


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """The steps and files of the checkpoints in `folder`, in the order of the steps."""
    folder = Path(folder)
    entries = [entry for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
    matches = [(_STEP.fullmatch(entry.name), entry) for entry in entries]
    return sorted((int(match[1]), entry) for match, entry in matches if match)


def check_writable(folder: str | Path) -> None:
    """Creates `folder` and writes to it once, so that a run fails before its first step and not at its last."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / ".check") as temporary:
            temporary.write_bytes(b"\0")
        (folder / ".check").unlink()
    except OSError as error:
        advice = "choose another folder with checkpoint_dir=…, or change its permissions"
        message = f"checkpoints cannot be written to {folder} ({error.strerror}): {advice}"
        raise CheckpointError(message) from error


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Keeps other trainings out of a folder until the block or the process ends. Raises CheckpointError where another
    training uses it."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(Path(folder) / ".lock", "ab"))  # stays: others lock this very file
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            advice = "wait for its end, or give this one a folder of its own with checkpoint_dir=…"
            raise CheckpointError(f"another training writes its checkpoints to {folder}: {advice}") from error
        except OSError as error:
            _log.warning("%s cannot be locked (%s): make sure that no other training writes there", folder, error)
        yield


def archive(folder: Path, what: str, *, after: int = -1) -> None:
    """Moves checkpoints of steps beyond `after`, and the summary of their run, to folder/earlier, so that they are
    neither overwritten nor taken for those of the run that begins. what: in words, for the line that is printed."""
    moved = [path for step, path in checkpoints(folder) if step > after]
    if moved or after < 0:
        moved += folder.glob("summary.json")
    if moved:
        target = folder / "earlier" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        target.mkdir(parents=True)
        for file in moved:
            file.rename(target / file.name)
        print(f"moved {len(moved)} file(s) {what} to {target}")


def best_checkpoint(written: dict[str, float | None]) -> str | None:
    """The name with the lowest metric; None where none was measured."""
    measured = {name: metric for name, metric in written.items() if metric is not None}
    return min(measured, key=measured.__getitem__, default=None)


def remove_old_checkpoints(folder: Path, written: dict[str, float | None], kept: int) -> None:
    """Removes all of `written`, in the order in which they were written, but the last `kept` and the best one."""
    best = best_checkpoint(written)
    for name in list(written)[:-kept]:
        if name != best:
            del written[name]
            if _STEP.fullmatch(name):  # a checkpoint must not name other files to be removed
                (folder / name).unlink(missing_ok=True)
