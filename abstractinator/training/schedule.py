"""Learning rates over the planned steps of a training: a factor on the rates of the settings.

warmup_stable_decay   linear warm-up, constant, then decay over the last num_decay_steps (Hu et al. 2024,
                      arXiv 2404.06395)
cosine                linear warm-up, then half a cosine down to the end
linear                linear warm-up, then linear down to the end
constant              linear warm-up, then constant
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError

Schedule = Callable[[float], float]
"""Planned steps over → factor on the learning rates."""

_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "1-sqrt": lambda done: 1.0 - math.sqrt(done),
}
_ARGUMENTS = {
    "warmup_stable_decay": ("num_decay_steps", "decay_type", "min_lr_ratio"),
    "cosine": ("min_lr_ratio",),
    "linear": ("min_lr_ratio",),
    "constant": (),
}


def build_schedule(config: ExperimentConfig, planned_steps: int) -> Schedule:
    """The schedule of the settings. Raises ConfigError where they do not fit."""
    check_schedule(config)
    warmup, decay = fitted_steps(config, planned_steps)
    arguments = config.scheduler_specific_kwargs
    lowest = float(arguments.get("min_lr_ratio", 0.0))
    shape = _DECAYS["cosine" if config.scheduler_type == "cosine" else arguments.get("decay_type", "cosine")]
    if config.scheduler_type == "linear":
        shape = _DECAYS["linear"]

    def factor(step: float) -> float:
        if step < warmup:
            return step / warmup
        if step < planned_steps - decay or not decay:
            return 1.0
        done = min(1.0, (step - (planned_steps - decay)) / decay)
        return max(0.0, shape(done) * (1.0 - lowest) + lowest)

    return factor


def fitted_steps(config: ExperimentConfig, planned_steps: int) -> tuple[int, int]:
    """Planned steps of the warm-up and of the decay.

    In a training that is shorter than warm-up and num_decay_steps together, both are shortened in proportion, so that a
    short training has the whole schedule, too. Raises ConfigError where the warm-up alone is too long.
    """
    warmup, decay = config.warmup_steps, 0
    if config.scheduler_type == "warmup_stable_decay":
        decay = config.scheduler_specific_kwargs["num_decay_steps"]
        if warmup + decay > planned_steps and decay:
            warmup = warmup * planned_steps // (warmup + decay)
            decay = planned_steps - warmup
    if warmup > planned_steps:
        raise ConfigError(f"warmup_steps ({warmup}) must be at most the {planned_steps} steps of the training")
    if config.scheduler_type in ("cosine", "linear"):
        decay = planned_steps - warmup
    return warmup, decay


def check_schedule(config: ExperimentConfig) -> None:
    """Raises ConfigError for an unknown schedule and for arguments that it does not take."""
    name, arguments = config.scheduler_type, config.scheduler_specific_kwargs
    if name not in _ARGUMENTS:
        raise ConfigError(f"scheduler_type must be one of {', '.join(_ARGUMENTS)}, not {name}")
    if unknown := [key for key in arguments if key not in _ARGUMENTS[name]]:
        takes = f"it takes {', '.join(_ARGUMENTS[name])}" if _ARGUMENTS[name] else "it takes none"
        raise ConfigError(
            f"scheduler_specific_kwargs has {', '.join(unknown)}, which scheduler_type={name} does not take; {takes}: "
            "give them as scheduler_specific_kwargs={…}, which replaces the whole"
        )
    decay = arguments.get("num_decay_steps", None if name == "warmup_stable_decay" else 0)
    if not isinstance(decay, int) or isinstance(decay, bool) or decay < 0:
        raise ConfigError(f"scheduler_specific_kwargs.num_decay_steps must be a whole number from 0 on, not {decay!r}")
    if (shape := arguments.get("decay_type", "cosine")) not in list(_DECAYS):  # it may be unhashable
        raise ConfigError(f"scheduler_specific_kwargs.decay_type must be one of {', '.join(_DECAYS)}, not {shape!r}")
    lowest: Any = arguments.get("min_lr_ratio", 0.0)
    if not isinstance(lowest, int | float) or not 0 <= lowest <= 1:
        raise ConfigError(f"scheduler_specific_kwargs.min_lr_ratio must lie between 0 and 1, not {lowest!r}")
