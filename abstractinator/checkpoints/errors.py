"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says what to do."""


def first_line(error: Exception) -> str:
    """An error in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
