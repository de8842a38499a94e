"""Learning rates over the planned steps, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import get_scheduler

from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError
from abstractinator.training.schedule import build_schedule


def rates_of(config: ExperimentConfig, planned_steps: int) -> list[float]:
    """The factor of every step."""
    schedule = build_schedule(config, planned_steps)
    return [schedule(step) for step in range(planned_steps)]


def config_of(scheduler_type: str, arguments: dict[str, Any], warmup_steps: int = 10) -> ExperimentConfig:
    return ExperimentConfig(
        scheduler_type=scheduler_type, scheduler_specific_kwargs=arguments, warmup_steps=warmup_steps
    )


def test_the_default_warms_up_stays_and_decays_over_its_last_500_steps() -> None:
    rates = rates_of(ExperimentConfig(), 1300)
    assert rates[10:801] == [1.0] * 791
    assert rates[9] < 1 and rates[801] < 1
    assert sorted(rates[800:], reverse=True) == rates[800:]
    assert rates[-1] < 1e-3


def test_a_step_between_two_planned_steps_has_a_rate_between_theirs() -> None:
    schedule = build_schedule(ExperimentConfig(), 1300)
    for step in (3, 900, 1200):
        low, high = sorted((schedule(step), schedule(step + 1)))
        assert low < schedule(step + 0.5) < high


@pytest.mark.parametrize("planned_steps", [1, 2, 5, 50, 409, 410])
def test_a_short_training_has_the_whole_schedule(planned_steps: int) -> None:
    rates = rates_of(ExperimentConfig(), planned_steps)
    assert max(rates) == 1.0
    top = rates.index(1.0)
    assert sorted(rates[:top]) == rates[:top]
    assert sorted(rates[top:], reverse=True) == rates[top:]
    assert rates[-1] <= 0.5 or planned_steps == 1
    assert top <= planned_steps * 10 / 510


@pytest.mark.parametrize(
    ("ours", "arguments", "theirs", "same"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 7}, "warmup_stable_decay", {}),
        ("warmup_stable_decay", {"num_decay_steps": 7, "decay_type": "linear"}, "warmup_stable_decay", {}),
        ("warmup_stable_decay", {"num_decay_steps": 7, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}, "", {}),
        ("cosine", {}, "cosine", {}),
        ("cosine", {"min_lr_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("linear", {}, "linear", {}),
        ("constant", {}, "constant_with_warmup", {}),
    ],
)
def test_the_rates_are_those_of_transformers(
    ours: str, arguments: dict[str, Any], theirs: str, same: dict[str, Any]
) -> None:
    import torch

    lowest = arguments.get("min_lr_ratio", 0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs or ours, optimizer, 4, 20, same or arguments)
    for step, rate in enumerate(rates_of(config_of(ours, arguments, warmup_steps=4), 20)):
        if not (lowest and step < 4):  # theirs begins the warm-up of these at the lowest rate
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("cosin", {}), ["scheduler_type", "cosine"]),
        (config_of("reduce_lr_on_plateau", {}), ["scheduler_type", "reduce_lr_on_plateau", "cosine"]),
        (config_of("cosine", {"num_decay_steps": 3}), ["num_decay_steps", "cosine", "takes min_lr_ratio"]),
        (config_of("constant", {"num_decay_steps": 3}), ["num_decay_steps", "constant", "takes none"]),
        (config_of("warmup_stable_decay", {}), ["num_decay_steps"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": -1}), ["num_decay_steps", "-1"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 0.5}), ["num_decay_steps", "0.5"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 3, "num_stable_steps": 9}), ["num_stable_steps"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "no"}), ["decay_type", "linear"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": [1]}), ["decay_type", "linear", "[1]"]),
        (config_of("cosine", {"min_lr_ratio": "two"}), ["min_lr_ratio", "two"]),
        (config_of("cosine", {}, warmup_steps=21), ["warmup_steps (21)", "20"]),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(config: ExperimentConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        rates_of(config, 20)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
