"""A contender's training for so many seconds or so many bytes, which can be put away and gone on with.

All contenders get the same documents in the same order, the same optimizers and the same schedule over the share of the
budget that is used up. Steps count, with the reading of their batches: not starting, not saving, not measuring.

Letters: B rows, N bytes a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from abstractinator.checkpoints.checkpoint_file import load_checkpoint, random_state, save_checkpoint, set_random_state
from abstractinator.data import Corpus, train_loader
from abstractinator.device import autocast
from abstractinator.training.optimizers import build_optimizers
from benchmarks.common import progress
from benchmarks.contenders.base import Contender

_WARM_UP, _DECAY = 0.02, 0.4  # shares of the budget: rising at the beginning, falling to 0 at the end


def clock() -> float:
    """Seconds, once the GPU, if one is in use, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def rate_at(done: float) -> float:
    """Factor on the learning rates when the share `done` of the budget is used up."""
    return max(0.0, min(1.0, (done + 1e-3) / _WARM_UP, (1.0 - done) / _DECAY))


@dataclass(frozen=True)
class Recipe:
    """How a contender is trained. unit, budget: for how many seconds or bytes. batch_size: rows a step.

    rate: factor on its learning rates. adamw_rate: one more on AdamW's alone.
    """

    unit: Literal["seconds", "bytes"]
    budget: float
    sequence_length: int
    batch_size: int
    seed: int
    rate: float = 1.0
    adamw_rate: float = 1.0


_WEIGHT_DECAY, _CLIP_NORM = 0.1, 1.0  # of every contender


class Training:
    """seconds, bytes, steps: what the training took so far. parts: how many parts of it are over."""

    def __init__(self, contender: Contender, corpus: Corpus, recipe: Recipe) -> None:
        self.contender, self.recipe = contender, recipe
        self.optimizers = build_optimizers(
            contender,
            learning_rate=contender.learning_rate * recipe.rate * recipe.adamw_rate,
            muon_learning_rate=contender.muon_learning_rate * recipe.rate,
            weight_decay=_WEIGHT_DECAY,
        )
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.loader = train_loader(corpus, recipe.sequence_length, recipe.batch_size, recipe.seed)
        self._device = next(contender.parameters()).device
        self._batches: Iterator[Tensor] | None = None
        self.seconds, self.bytes, self.steps, self.parts = 0.0, 0, 0, 0

    @property
    def used(self) -> float:
        """Seconds or bytes, as the budget counts."""
        return self.seconds if self.recipe.unit == "seconds" else float(self.bytes)

    def run(self, until: float) -> None:
        """One more part: steps until the share `until` of the budget is used up, to within half a step.

        Raises FloatingPointError when a gradient is not finite.
        """
        self.contender.train()
        goal = until * self.recipe.budget
        while self.steps == 0 or self.used + self.used / self.steps / 2 < goal:
            start = clock()
            self._next_step()
            self.seconds += clock() - start
        self.parts += 1

    def _next_step(self) -> None:
        if self._batches is None:
            self._batches = iter(self.loader)
        self.step(next(self._batches).to(self._device), self.used / self.recipe.budget)

    def step(self, rows: Tensor, done: float) -> None:
        """One optimizer step on (B, N), with the share `done` of the budget behind."""
        with autocast(rows.device, True):
            self.bytes += self.contender.learn(rows, done, self.steps == 0)
        norm = torch.nn.utils.clip_grad_norm_(self.contender.parameters(), _CLIP_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient norm became {float(norm)} at step {self.steps + 1}")
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def save(self, path: Path) -> None:
        """Writes what `restore` reads, whole or not at all."""
        payload = {
            "model": self.contender.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),
            "random": random_state(),
            "progress": {"seconds": self.seconds, "bytes": self.bytes, "steps": self.steps, "parts": self.parts},
        }
        save_checkpoint(path, payload)

    def restore(self, path: Path) -> None:
        """Goes on where the file was written. Raises CheckpointError."""
        payload = load_checkpoint(path)
        load_weights(self.contender, payload)
        for optimizer, saved in zip(self.optimizers, payload["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.loader.load_state_dict(payload["loader"])
        self._batches = None
        for name, value in payload["progress"].items():
            setattr(self, name, value)
        set_random_state(payload["random"])


def take_turns(trainings: dict[str, Training], parts: int) -> None:
    """Trains all until their budgets are used up, a part at a time."""
    for number in range(1, parts + 1):
        for name, training in trainings.items():
            training.run(number / parts)
            progress(f"{name}: {number} of {parts} parts, {training.steps:,} steps, {training.seconds:,.0f} s")


def load_weights(contender: Contender, payload: dict[str, Any]) -> None:
    """The weights of a training that `Training.save` wrote."""
    contender.load_state_dict(payload["model"])


@torch.no_grad()
def bits_per_byte(contender: Contender, rows: Tensor, batch_size: int) -> dict[str, float | None]:
    """exact and two_part (None without codes) of held-out rows (B, N), and bytes_per_second of the exact one."""
    contender.eval()
    exact, two_part, seconds, count, all_bytes = 0.0, None, 0.0, 0, 0
    for part in rows.split(batch_size):
        with autocast(rows.device, True):
            start = clock()
            nats, bytes_ = contender.nats(part)
            seconds += clock() - start
            exact, count = exact + float(nats), count + bytes_
            if (found := contender.two_part(part)) is not None:
                two_part, all_bytes = (two_part or 0.0) + float(found[0]), all_bytes + found[1]
    return {
        "exact": exact / math.log(2) / max(count, 1),
        "two_part": None if two_part is None else two_part / math.log(2) / max(all_bytes, 1),
        "bytes_per_second": count / seconds if seconds else None,
    }
