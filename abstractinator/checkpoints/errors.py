"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says what to do."""
