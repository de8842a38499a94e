"""One optimizer step, from batches to moved weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchical_autoencoder import Losses
from abstractinator.device import autocast
from abstractinator.training.run_state import RunState
from abstractinator.training.segmentation_schedule import follow_or_freeze


class TrainingError(ValueError):
    """The training cannot go on; the message says at which step and what to do."""


@dataclass(frozen=True)
class StepResult:
    """losses: of the step's last batch. gradient_norm: before clipping."""

    losses: Losses
    gradient_norm: float


def train_step(state: RunState, batches: Iterator[Tensor]) -> StepResult | None:
    """One optimizer step on the next batches; None where there are none left. Raises TrainingError.

    A step whose loss or gradient is not finite is not taken, so the weights stay good.
    """
    config, model = state.config, state.model
    device = next(model.parameters()).device
    model.train()
    losses, done = None, state.step / state.total_steps
    for rows in itertools.islice(batches, config.gradient_accumulation_steps):
        with autocast(device, config.mixed_precision):
            rows = rows.to(device, non_blocking=rows.is_pinned())
            first, losses = losses is None, model(rows, language_model=done >= config.autoencoder_fraction)
        _require_finite(losses.total, "loss", state)
        (losses.total / config.gradient_accumulation_steps).backward()
        follow_or_freeze(model, losses, done=done, first=first and state.step == 0)
        state.bytes_read += losses.bytes
    if losses is None:
        return None
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm)
    _require_finite(norm, "gradient norm", state)
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepResult(losses, float(norm))


def _require_finite(value: Tensor, name: str, state: RunState) -> None:
    if not torch.isfinite(value):
        best = state.best_checkpoint
        again = f"resume_from_checkpoint={Path(state.config.checkpoint_dir) / best}" if best else "start anew"
        raise TrainingError(
            f"the {name} became {float(value.detach())} at step {state.step + 1}, and the training stopped before that "
            f"step. Lower learning_rate or muon_learning_rate, or raise warmup_steps, and {again}"
        )
