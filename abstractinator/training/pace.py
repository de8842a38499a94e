"""How many steps fit into the time that a training may take on this machine."""

from __future__ import annotations

import itertools
import math
import statistics
import time

import torch
from torch import Tensor

from abstractinator.components.tokens import BYTES
from abstractinator.training.run_state import RunState
from abstractinator.training.step import TrainingError, train_step

_TIMED = 3  # steps of either kind, after one to warm up


def steps_in_time(trial: RunState, rows: Tensor, minutes: float) -> int:
    """The steps of a training of about so many minutes, at most trial.total_steps and at least 1.

    trial: a run that is measured and thrown away. rows: (B, N) text to measure on. Both kinds of steps are timed, those
    of the autoencoder alone and whole ones, and counted in the proportion of `autoencoder_fraction`.
    """
    config = trial.config
    # Text that is short is repeated from other places, so that its segments are not all the same.
    repeats = math.ceil(config.batch_size / len(rows))
    batch = torch.cat([rows.roll(17 * number, 1) for number in range(repeats)])[: config.batch_size]
    batch = batch.masked_fill(batch == BYTES.pad, ord(" "))
    alone = config.autoencoder_fraction
    try:
        _seconds(trial, batch, 0, count=1)  # sets where boundaries lie, as the first step of a training does
        whole_seconds = _seconds(trial, batch, trial.total_steps)
        # Just before the first whole step, where boundaries stand still, as they do most of the time.
        alone_seconds = _seconds(trial, batch, int(0.99 * alone * trial.total_steps)) if alone else 0.0
    except TrainingError:  # what is wrong will go wrong in the run too, and be told there
        return trial.total_steps
    per_step = alone * alone_seconds + (1 - alone) * whole_seconds
    return max(1, int(min(trial.total_steps, 60 * minutes / per_step)))


def _seconds(trial: RunState, batch: Tensor, step: int, count: int = 1 + _TIMED) -> float:
    """What a step takes when so many are behind: the median of `count`, without the first of them."""
    seconds = []
    for _ in range(count):
        trial.step, start = step, time.perf_counter()
        train_step(trial, itertools.repeat(batch))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)
