"""How many steps fit into the time that a training may take on this machine."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time

import torch
from torch import Tensor

from abstractinator.training.run_state import RunState
from abstractinator.training.step import TrainingError, train_step

_TIMED = 3  # steps of either kind, after one to warm up


def steps_in_time(trial: RunState, rows: Tensor) -> int:
    """The steps of a training of `max_minutes`, at most trial.total_steps and at least 1.

    trial: a run that is measured and thrown away. rows: (B, N) text to measure on. Both kinds of steps are timed, those
    of the autoencoder alone and whole ones, and counted in the proportion of `autoencoder_fraction`.
    """
    config, limit = trial.config, trial.config.max_minutes
    if limit is None:
        return trial.total_steps
    repeats = math.ceil(config.batch_size / len(rows))
    batch, random = rows.repeat(repeats, 1)[: config.batch_size], torch.get_rng_state()
    alone = config.autoencoder_fraction
    # Far enough from the beginning of either part that boundaries stand still, as they do most of the time.
    whole_seconds = _seconds(trial, batch, done=1.0)
    alone_seconds = _seconds(trial, batch, done=0.99 * alone) if alone else 0.0
    torch.set_rng_state(random)
    per_step = alone * alone_seconds + (1 - alone) * whole_seconds
    return max(1, min(trial.total_steps, int(60 * limit / per_step)))


def _seconds(trial: RunState, batch: Tensor, done: float) -> float:
    seconds = []
    for _ in range(1 + _TIMED):
        trial.step, start = int(done * trial.total_steps), time.perf_counter()
        with contextlib.suppress(TrainingError):  # what is wrong will go wrong in the run too, and be told there
            train_step(trial, itertools.repeat(batch))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
