"""Learning rates over the steps: fitted to the length of the training, and refused where they cannot be followed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError
from abstractinator.training.schedule import build_schedulers, move_to


def rates_of(config: ExperimentConfig, total_steps: int, wanted_steps: int | None = None) -> list[float]:
    """The learning rate of every step, as a share of the highest."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (scheduler,) = build_schedulers(config, [optimizer], total_steps, wanted_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


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


def test_a_training_shorter_than_max_steps_has_its_parts_in_the_same_proportion() -> None:
    rates = rates_of(ExperimentConfig(), 650, wanted_steps=1300)
    assert rates[5:401] == [1.0] * 396
    assert rates[4] < 1 and rates[401] < 1


def test_a_warm_up_is_shortened_where_nothing_decays() -> None:
    rates = rates_of(config_of("cosine", {}, warmup_steps=40), 20, wanted_steps=100)
    assert rates.index(max(rates)) == 8


@pytest.mark.parametrize("wanted_steps", [None, 1300])
@pytest.mark.parametrize("total_steps", [1, 2, 5, 50, 409, 410])
def test_a_short_training_has_the_whole_schedule(total_steps: int, wanted_steps: int | None) -> None:
    rates = rates_of(ExperimentConfig(), total_steps, wanted_steps)
    assert max(rates) == 1.0
    top = rates.index(1.0)
    assert sorted(rates[:top]) == rates[:top]
    assert sorted(rates[top:], reverse=True) == rates[top:]
    assert rates[-1] <= 0.5 or total_steps == 1
    assert top <= total_steps * 10 / 510


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("cosin", {}), ["scheduler_type", "cosine"]),
        (config_of("reduce_lr_on_plateau", {}), ["scheduler_type", "reduce_lr_on_plateau", "cosine"]),
        (config_of("cosine", {"num_decay_steps": 3}), ["num_decay_steps", "cosine", "takes num_cycles"]),
        (config_of("constant", {"num_decay_steps": 3}), ["num_decay_steps", "constant", "takes none"]),
        (config_of("warmup_stable_decay", {}), ["num_decay_steps"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": -1}), ["num_decay_steps", "-1"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 0.5}), ["num_decay_steps", "0.5"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 3, "num_stable_steps": 9}), ["num_stable_steps"]),
        (config_of("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "no"}), ["decay_type", "linear"]),
        (config_of("cosine_with_restarts", {"num_cycles": "two"}), ["num_cycles", "two"]),
        (config_of("cosine_with_min_lr", {}), ["cosine_with_min_lr", "min_lr_rate"]),
        (config_of("cosine", {}, warmup_steps=21), ["warmup_steps (21)", "20"]),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(config: ExperimentConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        rates_of(config, 20)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("scheduler_type", "arguments"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "linear"}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
        ("linear", {}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr": 0.1}),
    ],
)
def test_a_schedule_can_be_entered_at_any_step(scheduler_type: str, arguments: dict[str, Any]) -> None:
    config = config_of(scheduler_type, arguments, warmup_steps=4)
    expected = rates_of(config, 20)
    for step in (0, 3, 4, 11, 19):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        (scheduler,) = build_schedulers(config, [optimizer], 20)
        move_to(scheduler, step)
        for rate in expected[step:]:
            assert optimizer.param_groups[0]["lr"] == rate
            optimizer.step()
            scheduler.step()
