"""What a long benchmark has measured so far, piece by piece on disk, so that an interrupted run continues.

A piece is what one task came to. A task is a plain dict that holds everything the result depends on, and names the
file; other settings are other tasks, so nothing is ever taken for what it is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abstractinator.atomic_file import atomic_write
from benchmarks.common import ROOT

Task = dict[str, Any]
Result = dict[str, Any]


class Pieces:
    """The results in a folder, which is made when the first one comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(
        self, task: Task, measure: Callable[[Task], Result], good: Callable[[Result], bool] = lambda _: True
    ) -> Result:
        """The result of a task: what lies in the folder and is still `good`, otherwise what `measure` gives, which is
        kept before this returns. What `measure` raises is passed on and nothing is kept: the next run tries again."""
        path = self.folder / f"{task['baseline']}_{task['stage']}_{key_of(task)}.json"
        if path.exists():
            kept: Result = json.loads(path.read_text())["result"]
            if good(kept):
                return kept
        result = measure(task)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"task": task, "result": result}, indent=2) + "\n")
        return result


# What a measurement of the suite imports of the project.
_MEASURED = ("components", "abstractinator", "benchmarks/kinds")
_MEASURING = ("common", "pieces", "suite_work", "budgeted_training", "flat_transformer", "baselines", "ours")


def code_fingerprint() -> str:
    """A short name for the source on which every result of the suite depends."""
    files = sorted(path for folder in _MEASURED for path in (ROOT / folder).rglob("*.py"))
    files += [ROOT / "benchmarks" / f"{name}.py" for name in _MEASURING]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def key_of(task: Task) -> str:
    """A short name for a task, the same in every process."""
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:12]
