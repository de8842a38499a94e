"""ReadAhead: the batches of the loader, read while others are in use, and a position that nothing read ahead moves."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import DataConfig, DataError, ReadAhead, TrainLoader, train_loader
from abstractinator.data.formats.units import MemoryUnit
from abstractinator.data.local_corpus import LocalCorpus

TIMEOUT = 10.0
ROOT = Path(__file__).parent.parent


def same(found: list[Batch], wanted: list[Batch]) -> bool:
    return all(torch.equal(a.ids, b.ids) and a.bytes == b.bytes for a, b in zip(found, wanted, strict=True))


def loader() -> TrainLoader:
    documents = MemoryUnit("a", tuple(bytes([65 + i]) * 20 for i in range(26)))
    corpus = LocalCorpus("test", [documents], [MemoryUnit("b", (b"held out",))], DataConfig())
    return train_loader(corpus, RowLayout(16), batch_size=3, seed=5, num_epochs=2)


class Stub:
    """A loader whose single batches the test lets through. asked: set when a batch, or the end, is asked for."""

    def __init__(self, batches: int, error: Exception | None = None) -> None:
        self.gates = [Event() for _ in range(batches)]
        self.asked = [Event() for _ in range(batches + 1)]
        self.given, self.error = 0, error

    def __iter__(self) -> Iterator[Tensor]:
        for number, gate in enumerate(self.gates):
            self.asked[number].set()
            assert gate.wait(TIMEOUT)
            self.given += 1
            yield torch.tensor([number])
        self.asked[-1].set()
        if self.error is not None:
            raise self.error

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}


def test_its_batches_are_the_loaders() -> None:
    wanted = list(loader())
    found = list(ReadAhead(loader()))
    assert len(found) > 5 and same(found, wanted)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_what_was_read_ahead_is_not_lost_on_a_resume(taken: int) -> None:
    wanted = list(loader())
    first, again = ReadAhead(loader(), depth=5), ReadAhead(loader(), depth=1)
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    again.load_state_dict(first.state_dict())
    rest = list(again)
    assert same(rest, wanted[taken:])


def test_batches_are_read_while_one_is_in_use() -> None:
    stub = Stub(5)
    for gate in stub.gates[:3]:
        gate.set()
    ahead = ReadAhead(stub, depth=2)  # type: ignore[arg-type]
    batches = iter(ahead)
    assert int(next(batches)) == 0
    assert stub.asked[3].wait(TIMEOUT)  # two lie ready, and the next is being read
    assert ahead.state_dict() == {"given": 1}
    for gate in stub.gates:
        gate.set()
    assert [int(batch) for batch in batches] == [1, 2, 3, 4]
    assert ahead.state_dict() == {"given": 5}


def test_an_error_comes_where_its_batch_would_have() -> None:
    stub = Stub(2, DataError("the text is gone"))
    for gate in stub.gates:
        gate.set()
    batches = iter(ReadAhead(stub))  # type: ignore[arg-type]
    assert [int(next(batches)), int(next(batches))] == [0, 1]
    with pytest.raises(DataError, match="the text is gone"):
        next(batches)


def test_an_iterator_that_is_given_up_ends_its_thread() -> None:
    stub = Stub(9)
    for gate in stub.gates:
        gate.set()
    ahead = ReadAhead(stub, depth=1)  # type: ignore[arg-type]
    batches = iter(ahead)
    next(batches)
    reader = ahead._reader
    assert reader.is_alive()
    batches.close()  # type: ignore[attr-defined]
    reader.join(TIMEOUT)
    assert not reader.is_alive()


def test_a_new_iterator_ends_the_one_before() -> None:
    wanted, ahead = list(loader()), ReadAhead(loader())
    old = iter(ahead)
    next(old)
    state = ahead.state_dict()
    ahead.load_state_dict(state)
    assert same(list(ahead), wanted[1:])
    assert list(old) == []


class Busy:
    """A loader that is deep in torch's code when its second batch is asked for."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(1)
        for _ in range(3):
            torch.rand(2_000, 2_000) @ torch.rand(2_000, 2_000)
            yield torch.zeros(1)

    def state_dict(self) -> dict[str, Any]:
        return {}


ENDS = """
from tests.test_data_read_ahead import Busy, ReadAhead
batches = iter(ReadAhead(Busy()))
next(batches)
"""


def test_a_program_may_end_in_the_middle() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and not done.stderr
