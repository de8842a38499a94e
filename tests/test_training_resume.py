"""A resumed run is the run that was never stopped, and no checkpoint of another is taken for its own."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    assert_same_weights,
    folders,
    losses_of,
    names_in,
    recorded_steps,
    stop_after,
    tiny_experiment,
    weights_of,
)

from abstractinator.checkpoints import checkpoint_file as checkpoint
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract.model import Batch, Metric
from abstractinator.training import loop
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.state import RunState
from abstractinator.training.step import StepResult

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("shape", ["information", "increase", "whitespace-both"])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, stop: int
) -> None:
    steps = recorded_steps(monkeypatch)
    # At train_fraction 0.15 entropy models and thresholds are frozen from step 2 of 8 on: stops before and after.
    whole, halves = folders(tmp_path, "whole", "halves")
    train(tiny_experiment(whole, shape, validation_interval=3, generation_interval=3))
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, shape))
    first = losses_of(steps)
    frozen = load_checkpoint(halves / "checkpoints" / f"checkpoint_step{stop}.pt")["model"]
    assert bool(frozen["levels.0.compressor.frozen"]) == (stop > 1 and "whitespace" not in shape)
    torch.rand(11)
    train(tiny_experiment(halves, shape, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights_of(whole, 8), weights_of(halves, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"muon_learning_rate": 1e-3},
        {"weight_decay": 0.5},
        {"warmup_steps": 6},
        {"scheduler_type": "cosine", "scheduler_specific_kwargs": {}},
        {"max_steps": 12},
        {},
    ],
    ids=str,
)
def test_a_resumed_run_follows_the_settings_now_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    used: list[list[tuple[float, float]]] = []
    real = loop.train_step

    def recorded(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
        result = real(state, batches)
        groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
        used.append([(group["lr"], group["weight_decay"]) for group in groups])
        return result

    whole, halves = folders(tmp_path, "whole", "halves")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            train(wide_experiment(halves))
    monkeypatch.setattr(loop, "train_step", recorded)
    train(wide_experiment(whole, **changes))
    expected = used[4:]
    used.clear()
    train(wide_experiment(halves, resume_from_checkpoint="latest", **changes))
    assert used == expected
    assert len(used[0]) == 2  # AdamW's and Muon's


def wide_experiment(folder: Path, **changes: Any) -> ExperimentConfig:
    """Wide enough for matrices that Muon takes."""
    config = tiny_experiment(folder, "fixed", **changes)
    wide = TransformerConfig(width=32, layers=1, heads=2, window=4, mlp_width=32)
    top = dataclasses.replace(config.model.top_transformer_config, transformer=wide)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, top_transformer_config=top))


@pytest.mark.parametrize("scheduler_type", ["cosine", "linear", "constant"])
def test_schedules_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler_type: str) -> None:
    steps = recorded_steps(monkeypatch)
    whole, halves = folders(tmp_path, "whole", "halves")
    settings: dict[str, Any] = {"scheduler_type": scheduler_type, "scheduler_specific_kwargs": {}, "max_steps": 5}
    train(tiny_experiment(whole, **settings))
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, **settings))
    train(tiny_experiment(halves, resume_from_checkpoint="latest", **settings))
    assert losses_of(steps) == expected


def test_a_resumed_run_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = folders(tmp_path, "whole", "halves")
    expected = train(tiny_experiment(whole))
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_experiment(halves))
    assert stopped.value.checkpoint.name == "checkpoint_step5.pt"
    assert stopped.value.signal_number == signal.SIGTERM
    summary = train(tiny_experiment(halves, resume_from_checkpoint=str(stopped.value.checkpoint)))
    assert summary.steps == expected.steps == 8
    assert summary.held_out["bits_per_byte_exact"].value == expected.held_out["bits_per_byte_exact"].value
    last, reference = (load_checkpoint(f / "checkpoints" / "checkpoint_step8.pt") for f in (halves, whole))
    assert last["bytes_read"] == reference["bytes_read"]
    assert last["history"] == reference["history"]
    assert last["seconds"] > load_checkpoint(stopped.value.checkpoint)["seconds"]


def test_a_resumed_run_may_have_other_loss_weights(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, "increase", max_steps=2)
    train(config)
    compressor = config.model.levels[0].compressor
    compressor = dataclasses.replace(
        compressor,
        quantizer=dataclasses.replace(compressor.quantizer, decay=0.9, commitment=1.0, revive_after=0.0),
        segmentation=dataclasses.replace(compressor.segmentation, train_fraction=0.5),
    )
    model = dataclasses.replace(
        config.model,
        levels=(dataclasses.replace(config.model.levels[0], compressor=compressor),),
        predict_loss_weight=2.0,
        reconstruction_loss_weight=1.0,
        top_lm_loss_weight=0.5,
        aux_lm_loss_weight=0.5,
        repetition_weight=1.0,
    )
    resumed = dataclasses.replace(config, model=model, max_steps=3, resume_from_checkpoint="latest")
    assert train(resumed).steps == 3


def ranked_as(monkeypatch: pytest.MonkeyPatch, bits: list[float]) -> None:
    """The exact bits per byte that are measured after each step."""
    evaluate, step, done = loop.evaluate_held_out, loop.train_step, [0]

    def measured(*arguments: Any, **settings: Any) -> dict[str, Metric]:
        found = evaluate(*arguments, **settings)
        exact = dataclasses.replace(found["bits_per_byte_exact"], value=bits[done[0] - 1])
        return found | {"bits_per_byte_exact": exact}

    def counted(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
        result = step(state, batches)
        done[0] = state.step
        return result

    monkeypatch.setattr(loop, "evaluate_held_out", measured)
    monkeypatch.setattr(loop, "train_step", counted)


def test_the_newest_checkpoints_and_the_best_stay_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked_as(monkeypatch, [5.0, 3.0, 4.0, 6.0, 2.0, 7.0, 8.0, 9.0])
    config = tiny_experiment(tmp_path, checkpoint_interval=1, checkpoints_kept=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            train(config)
    assert names_in(tmp_path / "checkpoints") == [f"checkpoint_step{n}.pt" for n in (2, 3, 4)]
    summary = train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert names_in(tmp_path / "checkpoints") == [*(f"checkpoint_step{n}.pt" for n in (5, 7, 8)), "summary.json"]
    assert summary.best_checkpoint == "checkpoint_step5.pt"


def test_the_best_checkpoint_stays_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked_as(monkeypatch, [5.0, 3.0, 1.0, 6.0, 6.0, 6.0, 6.0, 6.0])
    config = tiny_experiment(tmp_path, checkpoint_interval=1, checkpoints_kept=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(config)
    summary = train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert summary.best_checkpoint == "checkpoint_step3.pt"
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step3.pt", "checkpoint_step8.pt", "summary.json"]


def test_resuming_an_earlier_step_archives_the_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = tiny_experiment(tmp_path, checkpoint_interval=2, checkpoints_kept=4), tmp_path / "checkpoints"
    train(config)
    abandoned = {name: (folder / name).read_bytes() for name in names_in(folder)}
    assert set(abandoned) == {*(f"checkpoint_step{n}.pt" for n in (2, 4, 6, 8)), "summary.json"}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            back = {"learning_rate": 1e-3, "resume_from_checkpoint": str(folder / "checkpoint_step4.pt")}
            train(dataclasses.replace(config, **back))
    assert "earlier" in capsys.readouterr().out
    assert names_in(folder) == ["checkpoint_step2.pt", "checkpoint_step4.pt", "checkpoint_step5.pt"]
    assert latest_checkpoint(folder) == folder / "checkpoint_step5.pt"
    (aside,) = (folder / "earlier").iterdir()
    assert names_in(aside) == ["checkpoint_step6.pt", "checkpoint_step8.pt", "summary.json"]
    assert all((aside / name).read_bytes() == abandoned[name] for name in names_in(aside))


def test_resuming_into_another_folder_leaves_both_runs_whole(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=2, checkpoints_kept=4, project_name="tiny")
    old, new = tmp_path / "checkpoints", tmp_path / "new"
    train(config)
    train(dataclasses.replace(config, checkpoint_dir=str(new), max_steps=4))
    kept = names_in(old)
    resumed = dataclasses.replace(
        config, checkpoint_dir=str(new), checkpoints_kept=1, resume_from_checkpoint=str(old / "checkpoint_step6.pt")
    )
    train(resumed)
    assert names_in(old) == kept
    assert names_in(new) == ["checkpoint_step8.pt", "summary.json"]
    (aside,) = (new / "earlier").iterdir()
    assert names_in(aside) == ["checkpoint_step2.pt", "checkpoint_step4.pt", "summary.json"]
    runs = {load_checkpoint(folder / "checkpoint_step8.pt")["tracking_run_id"] for folder in (old, new)}
    assert len(runs) == 2


def test_a_second_run_moves_the_first_out_of_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    train(tiny_experiment(tmp_path))
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    assert set(before) == {"checkpoint_step8.pt", "summary.json"}
    for _ in range(2):
        train(tiny_experiment(tmp_path, max_steps=3))
    assert "earlier" in capsys.readouterr().out
    aside = [path for path in (folder / "earlier").iterdir() if (path / "checkpoint_step8.pt").exists()]
    assert {path.name: path.read_bytes() for path in aside[0].iterdir()} == before
    assert len(list((folder / "earlier").iterdir())) == 2
    assert names_in(folder) == ["checkpoint_step3.pt", "summary.json"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    level = config.model.levels[0]
    # A window has no weights: the checkpoint would load, and mean something else.
    predictor = dataclasses.replace(level.expander.predictor, window=3)
    expander = dataclasses.replace(level.expander, position_width=9, predictor=predictor)
    other = dataclasses.replace(config.model, levels=(dataclasses.replace(level, expander=expander),))
    with pytest.raises(CheckpointError) as caught:
        train(dataclasses.replace(config, model=other, resume_from_checkpoint="latest"))
    assert "model.levels.0.expander.position_width" in str(caught.value)
    assert "model.levels.0.expander.predictor.window" in str(caught.value)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    (tmp_path / "text" / "train_new.txt").write_text("one more document")
    resumed = dataclasses.replace(config, resume_from_checkpoint="checkpoints/checkpoint_step2.pt")
    with pytest.raises(CheckpointError, match="different data"):
        train(dataclasses.replace(resumed, checkpoint_dir="new"))
    with pytest.raises(CheckpointError, match="different data"):
        train(resumed)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


def test_a_checkpoint_that_lacks_what_a_resume_needs_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    path = tmp_path / "checkpoints" / "checkpoint_step2.pt"
    payload = load_checkpoint(path)
    del payload["clock"]
    checkpoint.save_checkpoint(path, payload)
    with pytest.raises(CheckpointError, match="clock"):
        train(dataclasses.replace(config, max_steps=4, resume_from_checkpoint="latest"))


def damaged(state: dict[str, torch.Tensor], how: str) -> dict[str, Any]:
    if how == "shape":
        return {name: value[..., None] for name, value in state.items()}
    if how == "NaN":
        return {name: value * float("nan") for name, value in state.items()}
    if how == "text":
        return dict.fromkeys(state, "0")
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [("shape", "is not a tensor of shape"), ("NaN", "infinite or NaN"), ("text", "is not a tensor"),
     ("nothing", "not one of this model"), ("no states", "no states of the optimizers")],
)  # fmt: skip
def test_a_damaged_state_of_an_optimizer_is_refused(tmp_path: Path, how: str, message: str) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    path = tmp_path / "checkpoints" / "checkpoint_step2.pt"
    payload = load_checkpoint(path)
    for saved in payload["optimizers"]:
        saved["state"] = {} if how == "no states" else {n: damaged(state, how) for n, state in saved["state"].items()}
    checkpoint.save_checkpoint(path, payload)
    with pytest.raises(CheckpointError, match=message) as refused:
        train(dataclasses.replace(config, max_steps=4, resume_from_checkpoint="latest"))
    assert str(path) in str(refused.value) and "Use an earlier checkpoint" in str(refused.value)


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=latest.*no checkpoint_step"):
        train(tiny_experiment(tmp_path, resume_from_checkpoint="latest"))
