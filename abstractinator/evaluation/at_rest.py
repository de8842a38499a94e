"""A model that is measured or shown in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from abstractinator.checkpoints.random_state import random_state, set_random_state


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients. Afterwards the training goes on as if nothing had been computed: what is drawn
    from the random generators meanwhile leaves no trace."""
    was_training, before = model.training, random_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        set_random_state(before)
