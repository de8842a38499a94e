"""Batches read in a thread, before they are asked for, so that a training never waits for text.

torchdata.nodes.Prefetcher does it too, but raises errors with a traceback in their text, where a user is to get one
line that says what to do.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Protocol
from weakref import WeakSet

from abstractinator.contract.model import Batch

_POLL = 0.1  # seconds between two checks whether the iterator is still open
_PATIENCE = 5.0  # seconds that a program's end waits for a read that hangs


class Loader(Protocol):
    """What is read ahead: batches, and the position after the last one yielded."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ReadAhead:
    """A loader whose next batches are read while the last one is in use.

    depth: the most batches that are ready. pinned: whether they lie in memory from which a GPU copies by itself. An
    error of the loader is raised in place of the batch that it could not read.

    `state_dict()` is the position after the last batch yielded, however many have been read ahead; that of
    `load_state_dict` counts for the next iterator. One iterator is open at a time.
    """

    def __init__(self, loader: Loader, depth: int = 2, pinned: bool = False) -> None:
        self._loader, self._depth, self._pinned = loader, depth, pinned
        self._state: dict[str, Any] | None = None
        self._reader, self._closed = Thread(), Event()  # of the last iterator
        _ALL.add(self)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self._loader.load_state_dict(state)
        self._state = None

    def __iter__(self) -> Iterator[Batch]:
        """Raises ValueError where the position of `load_state_dict` does not fit the data."""
        self.close()
        batches = iter(self._loader)
        self._state = self._loader.state_dict()
        return self._ready_batches(batches)

    def _ready_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        ready: Queue[_Read] = Queue(self._depth)
        closed = self._closed = Event()
        self._reader = Thread(target=self._read, args=(batches, ready, closed), name="read ahead", daemon=True)
        self._reader.start()
        try:
            while not closed.is_set():
                try:
                    batch, state, error = ready.get(timeout=_POLL)
                except Empty:
                    continue
                if error is not None:
                    raise error
                if batch is None:
                    return
                self._state = state
                yield batch
        finally:
            closed.set()

    def _read(self, batches: Iterator[Batch], ready: Queue[_Read], closed: Event) -> None:
        last: _Read = (None, None, None)
        try:
            for batch in batches:
                batch = batch.pinned() if self._pinned else batch
                if not _put(ready, (batch, self._loader.state_dict(), None), closed):
                    return
        except BaseException as error:  # any error belongs to the thread that trains
            last = (None, None, error)
        _put(ready, last, closed)

    def close(self, timeout: float | None = None) -> None:
        """Closes the open iterator, if there is one, and waits until its thread no longer uses the loader, `timeout`
        seconds at most."""
        self._closed.set()
        if self._reader.is_alive():
            self._reader.join(timeout)


_ALL: WeakSet[ReadAhead] = WeakSet()


@atexit.register
def _end_threads() -> None:
    """A thread that Python's end tears out of torch aborts the process; one that hangs must not hold it."""
    for loader in _ALL:
        loader.close(_PATIENCE)


_Read = tuple[Batch | None, dict[str, Any] | None, BaseException | None]


def _put(ready: Queue[_Read], read: _Read, closed: Event) -> bool:
    """Puts it into the queue when there is room; False when the iterator is closed."""
    while not closed.is_set():
        try:
            ready.put(read, timeout=_POLL)
            return True
        except Full:
            continue
    return False
