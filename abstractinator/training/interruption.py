"""Signals that stop a training: Ctrl-C, SIGTERM and SIGHUP (a closed terminal).

The first one is a request: the loop grants it between two steps, where a checkpoint can be written. The second one ends
the process at once; the last checkpoint is whole, as checkpoints are written atomically.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """A context in which the first signal is noted in `signal` and the second one ends the process."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._stop: Callable[[signal.Signals], BaseException] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def stop_at_once(self, stop: Callable[[signal.Signals], BaseException]) -> None:
        """From now on a signal, also an earlier one, raises `stop(signal)` where the program stands."""
        self._stop = stop
        if self.signal is not None:
            raise stop(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            _exit_now(number)
        self.signal = signal.Signals(number)
        if self._stop is not None:
            raise self._stop(self.signal)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()


def _exit_now(number: int) -> None:
    """Ends the process without waiting for threads, or for what a library does at exit."""
    try:
        os.write(2, b"\nabstractinator: stopped at once; the last checkpoint is whole\n")  # also within a write
    finally:
        os._exit(128 + number)
