"""The learning rates over the steps of a training: one of transformers' schedules, fitted to its length."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError

# What a schedule is told by the training itself; num_stable_steps is what warm-up and decay leave of it.
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "num_stable_steps", "last_epoch"}


def build_schedulers(
    config: ExperimentConfig, optimizers: list[Optimizer], total_steps: int, wanted_steps: int | None = None
) -> list[LambdaLR]:
    """The schedule of the settings, once for each optimizer; steps: see `fitted_steps`. Raises ConfigError for settings
    that do not fit."""
    check_schedule(config)
    name, given = config.scheduler_type, config.scheduler_specific_kwargs
    warmup, arguments = fitted_steps(config, total_steps, wanted_steps)
    try:
        schedulers = [get_scheduler(name, optimizer, warmup, total_steps, arguments) for optimizer in optimizers]
        for factor in (factor for scheduler in schedulers for factor in scheduler.lr_lambdas):
            for step in (0, warmup, total_steps - 1):
                factor(step)  # a value of the wrong kind shall not wait for its phase
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scheduler_specific_kwargs={given} does not fit scheduler_type={name}: {error}") from error
    return schedulers


def fitted_steps(
    config: ExperimentConfig, total_steps: int, wanted_steps: int | None = None
) -> tuple[int, dict[str, Any]]:
    """warmup_steps and scheduler_specific_kwargs as they are followed.

    A training of fewer steps than were wanted (max_minutes), or than warm-up and num_decay_steps together, has both
    shortened in proportion, so that a short one has the whole schedule, too. Raises ConfigError where warm-up
    alone is too long.
    """
    warmup, arguments = config.warmup_steps, config.scheduler_specific_kwargs
    decay = arguments.get("num_decay_steps", 0)
    if wanted_steps is not None and total_steps < wanted_steps:
        warmup = warmup * total_steps // wanted_steps
        decay = max(decay * total_steps // wanted_steps, min(2, decay, total_steps))  # over one step nothing falls
    if warmup + decay > total_steps:
        if not decay:
            raise ConfigError(f"warmup_steps ({warmup}) must be at most the {total_steps} steps of the training")
        warmup = warmup * total_steps // (warmup + decay)
        decay = total_steps - warmup
    return warmup, {**arguments, "num_decay_steps": decay} if "num_decay_steps" in arguments else arguments


def move_to(scheduler: LambdaLR, step: int) -> None:
    """Puts a schedule, which depends on nothing but the step, where so many steps would have brought it."""
    scheduler.last_epoch = step
    factors = [factor(step) for factor in scheduler.lr_lambdas]
    for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor


def check_schedule(config: ExperimentConfig) -> None:
    """Raises ConfigError where there is no such schedule of the steps alone, or it does not take these arguments."""
    name, arguments = config.scheduler_type, config.scheduler_specific_kwargs
    functions = {kind.value: inspect.signature(function) for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    schedules = {kind: signature for kind, signature in functions.items() if "last_epoch" in signature.parameters}
    if name not in schedules:
        raise ConfigError(f"scheduler_type must be one of {', '.join(schedules)}, not {name}")
    fitting = [key for key in schedules[name].parameters if key not in _GIVEN]
    if unknown := [key for key in arguments if key not in fitting]:
        takes = f"it takes {', '.join(fitting)}" if fitting else "it takes none"
        raise ConfigError(
            f"scheduler_specific_kwargs has {', '.join(unknown)}, which scheduler_type={name} does not take; {takes}: "
            "give them as scheduler_specific_kwargs={…}, which replaces the whole"
        )
    decay = arguments.get("num_decay_steps", 0)
    if not isinstance(decay, int) or isinstance(decay, bool) or decay < 0:
        raise ConfigError(f"scheduler_specific_kwargs.num_decay_steps must be a whole number from 0 on, not {decay!r}")
