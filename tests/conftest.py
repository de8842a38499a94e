"""How the tests run.

Several processes (`pytest -n auto`) share the processors instead of waiting for each other's threads. Generated
examples are the same each time, so that a change alone decides; `--hypothesis-profile=explore` tries new ones.
Kernels for a GPU are interpreted where there is none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded, and for the processes that tests start
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from abstractinator.components.hierarchical.incremental_model import CodeSteps, IncrementalModel

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the CPU; before it is loaded for the first time

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """What trains flushes them; hypothesis draws no numbers where that lasts."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate` takes the checkout off the path where modules are found; other tests need it there."""
    monkeypatch.setattr("sys.path", list(sys.path))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is an empty one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents, some of whose bytes are parts of longer characters."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(80):
        (folder / f"{number}.txt").write_text(f"Dokument {number}: «{number**2}» – again, and again.\n" * 5)
    return folder


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[IncrementalModel]]:
    """The incremental states that generation makes, each with `reads`: how many rows each call that reads was for."""
    from abstractinator.components.hierarchical.incremental_model import CodeSteps, IncrementalModel

    made: list[IncrementalModel] = []
    begin, read, read_byte = IncrementalModel.__init__, IncrementalModel.read, IncrementalModel.read_byte
    read_code = CodeSteps.read

    def remember(self: IncrementalModel, *arguments: object) -> None:
        self.reads: list[int] = []  # type: ignore[attr-defined]
        begin(self, *arguments)
        made.append(self)

    def count_read(self: IncrementalModel, rows: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        self.reads.append(len(rows))
        return read(self, rows, *rest)

    def count_byte(self: IncrementalModel, rows: torch.Tensor, byte: torch.Tensor) -> torch.Tensor:
        self.reads.append(len(rows))
        return read_byte(self, rows, byte)

    def count_code(self: CodeSteps, ids: torch.Tensor) -> torch.Tensor:
        self._state.reads.append(len(ids))  # type: ignore[attr-defined]
        return read_code(self, ids)

    monkeypatch.setattr(IncrementalModel, "__init__", remember)
    monkeypatch.setattr(IncrementalModel, "read", count_read)
    monkeypatch.setattr(IncrementalModel, "read_byte", count_byte)
    monkeypatch.setattr(CodeSteps, "read", count_code)
    yield made
