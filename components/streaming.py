"""What all kinds that generate share: prompts that are checked, and a model that is only changed while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from abstractinator.contract.capabilities import Piece


def check_prompts(prompts: Sequence[bytes]) -> None:
    """Raises ValueError for no prompt, and for one that is not bytes."""
    if not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts are a list of bytes, not {type(prompts).__name__}: use [b'…']")
    if not prompts:
        raise ValueError("no prompt was given")
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, bytes)]:
        raise ValueError(
            f"a prompt is bytes, several are a list of them; not {type(wrong[0]).__name__}: use text.encode()"
        )


class Generation(Protocol):
    """A generation that has read its prompts."""

    def pieces(self) -> Iterator[Piece]:
        """The continuations as they come."""


def stream_pieces(model: nn.Module, begin: Callable[[], Generation]) -> Iterator[Piece]:
    """The pieces of a generation. `begin` is called at once, so its errors are raised here.

    Between two pieces the model is in the caller's mode, train or eval; its weights must not change.
    """
    with _stepping(model):
        generation = begin()
    return _stream(model, generation)


def _stream(model: nn.Module, generation: Generation) -> Iterator[Piece]:
    pieces = generation.pieces()
    while True:
        with _stepping(model):  # left before each yield, so that it does not reach into the caller's code
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


@contextmanager
def _stepping(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, and in fp32, also inside autocast."""
    was_training, device = model.training, next(model.parameters()).device
    if was_training:  # not at every piece: it visits all modules
        model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if was_training:
            model.train()
