"""Where every command begins. Little is imported here, so that Ctrl-C ends a command quietly from the beginning."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and returns the exit status."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not one of a program that calls this
        signal.signal(signal.SIGINT, _stop)
    try:
        from abstractinator.cli.command_line import run

        return run(arguments)
    finally:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ctrl-C outside of a training: ends at once, and quietly, also within an import."""
    try:
        os.write(2, b"\nabstractinator: stopped\n")  # a stream may be in the middle of a write
    finally:
        os._exit(128 + number)
