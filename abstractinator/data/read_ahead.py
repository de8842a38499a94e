"""Batches read in a thread, before they are asked for, so that a training never waits for text.

torchdata.nodes.Prefetcher does it too, but raises what goes wrong with a traceback in its text, where a user is to get
one line that says what to do.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any
from weakref import WeakSet

from torchdata.stateful_dataloader import StatefulDataLoader

from abstractinator.contract.model import Batch

_POLL = 0.1  # seconds between two looks at whether anybody still waits
_PATIENCE = 5.0  # seconds that a program's end waits for a read that hangs


class ReadAhead:
    """A loader whose next batches are read while the last one is in use.

    loader: what `train_loader` gives. depth: how many batches lie ready at most. pinned: whether they lie in memory
    from which a GPU copies by itself. What the loader raises comes in place of the batch that it could not give.

    `state_dict()` is the position after the batch given out last, whatever has been read ahead; that of
    `load_state_dict` counts for the next iterator. One iterator is open at a time.
    """

    def __init__(self, loader: StatefulDataLoader, depth: int = 2, pinned: bool = False) -> None:
        self._loader, self._depth, self._pinned = loader, depth, pinned
        self._state: dict[str, Any] | None = None
        self._reader, self._over = Thread(), Event()  # of the last iterator
        _ALL.add(self)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self._loader.load_state_dict(state)
        self._state = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        batches = iter(self._loader)  # a position of other data is refused here
        self._state = self._loader.state_dict()
        return self._given_out(batches)

    def _given_out(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        ready: Queue[_Read] = Queue(self._depth)
        over = self._over = Event()
        self._reader = Thread(target=self._read, args=(batches, ready, over), name="read ahead", daemon=True)
        self._reader.start()
        try:
            while not over.is_set():
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
            over.set()

    def _read(self, batches: Iterator[Batch], ready: Queue[_Read], over: Event) -> None:
        last: _Read = (None, None, None)
        try:
            for batch in batches:
                one = batch.pinned() if self._pinned else batch
                if not _put(ready, (one, self._loader.state_dict(), None), over):
                    return
        except BaseException as error:  # whatever it is, it belongs to who reads
            last = (None, None, error)
        _put(ready, last, over)

    def close(self, timeout: float | None = None) -> None:
        """Ends the iterator that is open, if one is, and waits until its thread is done with the loader, `timeout`
        seconds at most."""
        self._over.set()
        if self._reader.is_alive():
            self._reader.join(timeout)


_ALL: WeakSet[ReadAhead] = WeakSet()


@atexit.register
def _end_threads() -> None:
    """A thread that Python's end tears out of torch's code aborts the process; one that hangs must not hold it."""
    for loader in _ALL:
        loader.close(_PATIENCE)


_Read = tuple[Batch | None, dict[str, Any] | None, BaseException | None]


def _put(ready: Queue[_Read], one: _Read, over: Event) -> bool:
    """Puts it into the queue when there is room; False when nobody takes anything any more."""
    while not over.is_set():
        try:
            ready.put(one, timeout=_POLL)
            return True
        except Full:
            continue
    return False
