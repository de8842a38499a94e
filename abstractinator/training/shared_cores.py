"""A training beside other programs on the same cores."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

_INTERVAL = 0.5  # seconds between two looks
_SHARED = 0.1  # seconds of waiting for a core, of all threads together, in a second of time


class SharedCores:
    """Lets threads that wait for one another sleep at once, for as long as other programs want the same cores.

    A step has thousands of short parallel regions, and at the end of each the threads wait for one another. On an idle
    machine it is fastest to spin for a while (`limit_spinning`). Where another program uses a core, a thread that spins
    keeps the one from running for which it waits. GNU OpenMP knows this case when it has more threads than there are
    cores, and spins 40 times less then. So threads are added that never have anything to do. The threads that compute
    stay the same, and so do the results, to the last bit.

    Linux alone says how long threads wait for a core; elsewhere nothing is done.
    """

    def __init__(self) -> None:
        self._seconds, self._delay = time.monotonic(), _seconds_waited()
        self._end: threading.Event | None = None

    @property
    def found(self) -> bool:
        """Whether other programs want the cores."""
        return self._end is not None

    def look(self) -> None:
        """To be called after each step; takes 0.2 ms twice a second."""
        now, before = time.monotonic(), self._delay
        if before is None or now - self._seconds < _INTERVAL:
            return
        self._delay = _seconds_waited()
        shared = self._delay is not None and self._delay - before > _SHARED * (now - self._seconds)
        self._seconds = now
        if shared and not self.found:
            self._end = _add_idle_threads()
        elif not shared:
            self._remove()

    def _remove(self) -> None:
        if self._end is not None:
            self._end.set()
            self._end = None

    def __enter__(self) -> SharedCores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()


def _seconds_waited() -> float | None:
    """How long this process's threads have waited for a core so far, in all; None where the system does not say."""
    try:
        return sum(int(_schedstat(task).split()[1]) for task in os.listdir("/proc/self/task")) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def _schedstat(task: str) -> str:
    """Nanoseconds on a core, nanoseconds of waiting for one, and time slices of a thread (Linux, proc(5))."""
    try:
        return Path(f"/proc/self/task/{task}/schedstat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/schedstat").exists():
            return "0 0 0"  # the thread has just ended
        raise


def _add_idle_threads() -> threading.Event:
    """Adds threads to OpenMP's until it has more than cores; they end when the event is set."""
    end, threads, cores = threading.Event(), torch.get_num_threads(), len(os.sched_getaffinity(0))
    pools = (cores - threads) // (threads - 1) + 1 if 1 < threads <= cores else 0
    for _ in range(pools):  # each thread of Python's has a pool of its own, as large as the first
        threading.Thread(target=_hold_pool, args=(end,), name="idle", daemon=True).start()
    return end


def _hold_pool(end: threading.Event) -> None:
    torch.ones(1 << 20).add_(1.0)  # large enough for all threads: begins the pool
    end.wait()
