"""A training by the frame for a number of seconds or bytes, in parts, which can be saved and resumed.

All models get the same documents in the same order, the same optimizers and the same schedule over their budget. Steps
count, with the reading of their batches: not starting, not saving, not measuring.

Letters: B rows, N bytes a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import Batch, Model
from abstractinator.data import Corpus, ReadAhead, train_loader
from abstractinator.device import autocast
from abstractinator.training.state import RunState
from abstractinator.training.step import train_step
from benchmarks.baselines import Rates
from benchmarks.common import progress

_WARM_UP, _DECAY = 0.02, 0.4  # shares of the budget: rising at the beginning, falling to 0 at the end
_PLANNED = 20_000  # steps of a training that is limited in time; more than there is time for


def clock() -> float:
    """Seconds, once the GPU, if one is in use, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. unit, budget: for how many seconds or bytes. batch_size: rows a step.

    rate: factor on its learning rates. adamw_rate: one more on AdamW's alone.
    """

    unit: Literal["seconds", "bytes"]
    budget: float
    sequence_length: int
    batch_size: int
    seed: int
    rate: float = 1.0
    adamw_rate: float = 1.0

    @property
    def planned_steps(self) -> int:
        """Steps of the schedule."""
        if self.unit == "seconds":
            return _PLANNED
        return max(1, round(self.budget / (self.batch_size * self.sequence_length)))

    def experiment(self, config: Any, rates: Rates) -> ExperimentConfig:
        """The settings by which the frame trains a model of these settings."""
        planned = self.planned_steps
        return ExperimentConfig(
            model=config,
            project_name=None,
            seed=self.seed,
            sequence_length=self.sequence_length,
            batch_size=self.batch_size,
            max_steps=planned,
            max_minutes=self.budget / 60 if self.unit == "seconds" else None,
            learning_rate=rates.learning_rate * self.rate * self.adamw_rate,
            muon_learning_rate=rates.muon_learning_rate * self.rate,
            scheduler_type="warmup_stable_decay",
            warmup_steps=round(_WARM_UP * planned),
            scheduler_specific_kwargs={"num_decay_steps": round(_DECAY * planned), "decay_type": "linear"},
        )


class Training:
    """A training of a model, which is on its device, in parts."""

    def __init__(self, model: Model, rates: Rates, corpus: Corpus, recipe: Recipe) -> None:
        self.recipe, self.model = recipe, model
        loader = train_loader(corpus, model.layout(recipe.sequence_length), recipe.batch_size, recipe.seed)
        experiment = recipe.experiment(model.config, rates)
        self.state = RunState.begin(experiment, model, ReadAhead(loader), recipe.planned_steps)
        self._batches: Iterator[Batch] | None = None

    @property
    def share(self) -> float:
        """Share of the budget that is used up."""
        clock = self.state.clock
        return clock.seconds / self.recipe.budget if self.recipe.unit == "seconds" else clock.done

    def run(self, until: float) -> None:
        """One more part: steps until the share `until` of the budget is used up, to within half a step.

        Raises TrainingError where a loss or gradient was not finite.
        """
        state = self.state
        if self._batches is None:
            self._batches = state.batches()
        while not state.clock.is_over and (state.step == 0 or self.share * (1 + 0.5 / state.step) < until):
            if train_step(state, self._batches) is None:
                break
        state.check_finite()

    def save(self, path: Path) -> None:
        """Writes a checkpoint of the frame, atomically."""
        self.state.save(path)

    def restore(self, path: Path) -> None:
        """Resumes where the file was written. Raises CheckpointError."""
        self.state.restore(load_checkpoint(path), path)
        self._batches = None


def take_turns(trainings: dict[str, Training], parts: int) -> None:
    """Trains all until their budgets are used up, a part at a time."""
    for number in range(1, parts + 1):
        for name, training in trainings.items():
            training.run(number / parts)
            state = training.state
            progress(f"{name}: {number} of {parts} parts, {state.step:,} steps, {state.clock.seconds:,.0f} s")


@torch.no_grad()
def bits_per_byte(model: Model, rows: Tensor, batch_size: int) -> dict[str, float | None]:
    """exact and two_part (None without one) of held-out rows (B, N), and bytes_per_second of the scoring."""
    model.eval()
    totals: dict[str, float] = {}
    seconds, predicted, phase = 0.0, 0.0, model.phases()[-1].name
    for part in rows.split(batch_size):
        with autocast(rows.device, True):
            start = clock()
            losses = model(Batch.of(part, model.tokenizer), phase)
            seconds += clock() - start
        predicted += float(losses.parts["bits_per_byte_exact"].weight)
        for name in ("exact", "two_part"):
            if (mean := losses.parts.get(f"bits_per_byte_{name}")) is not None:
                totals[name] = totals.get(name, 0.0) + float(mean.total)
    every = int((rows < ByteTokenizer.text_size).sum())
    return {
        "exact": totals["exact"] / max(predicted, 1.0),
        "two_part": totals["two_part"] / max(every, 1) if "two_part" in totals else None,
        "bytes_per_second": predicted / seconds if seconds else None,
    }
