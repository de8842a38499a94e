"""How errors of libraries become part of a message. This module imports nothing heavy."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
