"""How many steps fit into the time: counted from both kinds of steps, without a trace in the run itself."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_experiment

from abstractinator.config.settings import ConfigError
from abstractinator.training import loop, pace
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.pace import steps_in_time
from abstractinator.training.run_state import RunState
from abstractinator.training.step import StepResult


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which a step of the autoencoder alone takes 1 s and a whole one 4 s."""
    now, real = [0.0], pace.train_step

    def timed(state: RunState, batches: Any) -> StepResult | None:
        whole = state.step / state.total_steps >= state.config.autoencoder_fraction
        now[0] += 4.0 if whole else 1.0
        return real(state, batches)

    monkeypatch.setattr(pace, "train_step", timed)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def steps(folder: Path, minutes: float, **changes: Any) -> int:
    config = tiny_experiment(folder, max_steps=100, **changes)
    trial = RunState.begin(config, None, 100, torch.device("cpu"))  # type: ignore[arg-type]
    return steps_in_time(trial, torch.randint(256, (1, 64)), minutes)


@pytest.mark.parametrize(
    ("fraction", "minutes", "expected"),
    [(0.5, 1.0, 24), (0.0, 1.0, 15), (0.75, 0.5, 17), (0.5, 100.0, 100), (0.5, 1e-6, 1)],
)
def test_steps_are_as_many_as_their_seconds_allow(
    tmp_path: Path, clock: list[float], fraction: float, minutes: float, expected: int
) -> None:
    assert steps(tmp_path, minutes, autoencoder_fraction=fraction) == expected


def test_measuring_leaves_no_trace_in_the_run(tmp_path: Path) -> None:
    free, limited = (
        train(tiny_experiment(tmp_path, max_minutes=minutes, checkpoint_dir=str(tmp_path / name)))
        for minutes, name in ((None, "free"), (60.0, "limited"))
    )
    assert limited.steps == free.steps == 8
    assert limited.held_out.bits_per_byte_exact == free.held_out.bits_per_byte_exact


def test_a_resumed_run_ends_where_it_would_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "steps_in_time", lambda trial, rows, minutes: 6)
    whole = train(tiny_experiment(tmp_path, max_minutes=1.0, checkpoint_dir=str(tmp_path / "whole")))
    assert "max_minutes=1 leaves 6 of 8 steps" in capsys.readouterr().out
    config = tiny_experiment(tmp_path, max_minutes=1.0)
    real, numbers = loop.train_step, itertools.count(1)

    def stopping(state: RunState, batches: Any) -> StepResult | None:
        result = real(state, batches)
        if next(numbers) == 3:
            raise Interrupted(2, loop._save(state, Path(config.checkpoint_dir)))
        return result

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(loop, "steps_in_time", lambda trial, rows, minutes: 2)  # a machine that is slower now
    resumed = train(tiny_experiment(tmp_path, max_minutes=1.0, resume_from_checkpoint="latest"))
    assert resumed.steps == whole.steps == 6
    assert resumed.held_out.bits_per_byte_exact == whole.held_out.bits_per_byte_exact


def test_more_steps_than_there_is_time_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "steps_in_time", lambda trial, rows, minutes: 6)
    train(tiny_experiment(tmp_path, max_minutes=1.0))
    again = {"max_steps": 10, "resume_from_checkpoint": "latest"}
    with pytest.raises(ConfigError, match=r"leaves 6 steps.*step6\.pt has 6 behind it: add max_minutes=None"):
        train(tiny_experiment(tmp_path, max_minutes=1.0, **again))
    assert train(tiny_experiment(tmp_path, max_minutes=None, **again)).steps == 10


def test_no_time_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_minutes must be above 0"):
        tiny_experiment(tmp_path, max_minutes=0.0)
