"""Trainings that end with their epochs or with their minutes, and what is resumed of them."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import (
    assert_same_weights,
    folders,
    losses_of,
    recorded_steps,
    stop_after,
    tiny_experiment,
    weights_of,
    write_config,
)

from abstractinator.checkpoints import checkpoint_file as checkpoint
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.config.experiment import load_experiment
from abstractinator.config.settings import ConfigError
from abstractinator.training import step as step_module
from abstractinator.training.loop import Interrupted, train

pytestmark = pytest.mark.usefixtures("elsewhere")


def text_bytes(folder: Path) -> int:
    """Of the training files."""
    return sum(path.stat().st_size for path in (folder / "text").glob("train*"))


def test_more_epochs_train_the_rest(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, num_epochs=1, max_steps=None)
    first = train(config)
    payload = load_checkpoint(tmp_path / "checkpoints" / f"checkpoint_step{first.steps}.pt")
    assert payload["bytes_read"] == text_bytes(tmp_path)
    more = train(dataclasses.replace(config, num_epochs=4, resume_from_checkpoint="latest"))
    payload = load_checkpoint(tmp_path / "checkpoints" / f"checkpoint_step{more.steps}.pt")
    assert payload["bytes_read"] == pytest.approx(4 * text_bytes(tmp_path), abs=64)  # of the row where the first ended
    assert more.steps == pytest.approx(4 * first.steps, abs=2)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_epoch_is_trained_to_its_end_with_other_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    config = tiny_experiment(tmp_path, num_epochs=1, max_steps=None)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Interrupted):
            train(config)
    rest = train(dataclasses.replace(config, batch_size=batch_size, resume_from_checkpoint="latest"))
    payload = load_checkpoint(tmp_path / "checkpoints" / f"checkpoint_step{rest.steps}.pt")
    assert payload["bytes_read"] == text_bytes(tmp_path)
    rows = -(-(text_bytes(tmp_path) + 2 * 18) // 64)  # of 18 documents with BOS and EOS
    assert rest.steps == 9 + -(-(rows - 9 * 2) // batch_size)


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes half a second, or so it seems."""
    now = [0.0]

    def later() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(step_module, "time", SimpleNamespace(perf_counter=later))


@pytest.mark.usefixtures("slow_steps")
def test_a_limited_run_of_epochs_resumes_at_its_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    settings: dict[str, Any] = {"num_epochs": 4, "max_steps": None, "max_minutes": 15 / 60}
    whole, halves = folders(tmp_path, "whole", "halves")
    count = train(tiny_experiment(whole, **settings)).steps
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, **settings))
    first = losses_of(steps)
    assert load_checkpoint(halves / "checkpoints" / "checkpoint_step20.pt")["clock"]["position"] > 25
    assert train(tiny_experiment(halves, resume_from_checkpoint="latest", **settings)).steps == count
    assert first + losses_of(steps) == expected


@pytest.mark.usefixtures("slow_steps")
def test_a_run_that_max_minutes_shortens_is_repeated_by_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = recorded_steps(monkeypatch)
    limited, again = folders(tmp_path, "limited", "again")
    summary = train(tiny_experiment(limited, max_steps=60, max_minutes=20 / 60))
    assert summary.steps < 50
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("this run again"))
    overrides = shlex.split(line.partition("the same settings and ")[2])
    assert overrides[:2] == ["max_minutes=None", "max_steps=60"]
    first = losses_of(steps)
    config = write_config(tmp_path / "c.py", tiny_experiment(again, max_steps=60, max_minutes=20 / 60))
    assert train(load_experiment(config, overrides)).steps == summary.steps
    assert losses_of(steps) == first
    weights = [weights_of(folder, summary.steps) for folder in (limited, again)]
    assert_same_weights(*weights)


def test_time_that_is_used_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment(tmp_path, max_minutes=1.0)
    train(config)
    path = tmp_path / "checkpoints" / "checkpoint_step8.pt"
    payload = load_checkpoint(path)
    checkpoint.save_checkpoint(path, payload | {"clock": payload["clock"] | {"seconds": 61.0}})
    more = dataclasses.replace(config, max_steps=12, resume_from_checkpoint="latest")
    with pytest.raises(ConfigError, match=r"max_minutes=1 is used up.*add max_minutes=None"):
        train(more)
    assert train(dataclasses.replace(more, max_minutes=None)).steps == 12
