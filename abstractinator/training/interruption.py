"""Ctrl-C and SIGTERM: a wish that the loop grants between two steps, when a checkpoint can be written, and after the
last checkpoint an end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class Interruption:
    """A context in which the first SIGINT or SIGTERM is noted in `signal`; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._stop: Callable[[signal.Signals], BaseException] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def stop_at_once(self, stop: Callable[[signal.Signals], BaseException]) -> None:
        """From now on a signal, also one noted before, raises what `stop` makes of it where the program stands."""
        self._stop = stop
        if self.signal is not None:
            raise stop(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if self._stop is not None:
            raise self._stop(self.signal)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
