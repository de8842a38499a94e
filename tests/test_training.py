"""Training runs from beginning to end: repeatable, resumable, and never losing a good checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import tiny_experiment, write_config, write_text
from torch import Tensor

from abstractinator import cli
from abstractinator.config import ExperimentConfig
from abstractinator.data import ReadAhead, open_corpus, train_loader
from abstractinator.evaluation.held_out import HeldOutReport
from abstractinator.training import checkpoint, loop
from abstractinator.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.run_state import RunState, load_model
from abstractinator.training.step import TrainingError
from components import segment_parts
from components.hierarchical_autoencoder import HierarchicalAutoencoder, Losses
from components.transformer import TransformerConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[loop.StepResult]:
    """The results of all optimizer steps, as they are made."""
    done: list[loop.StepResult] = []
    real = loop.train_step

    def recorded(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        result = real(state, batches)
        if result is not None:
            done.append(result)
        return result

    monkeypatch.setattr(loop, "train_step", recorded)
    return done


def losses_of(steps: list[loop.StepResult]) -> list[float]:
    losses = [float(step.losses.total.detach()) for step in steps]
    steps.clear()
    return losses


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """This process gets a signal during that step."""
    before = loop.train_step

    def stopping(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        result = before(state, batches)
        if state.step == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(loop, "train_step", stopping)


def weights_of(folder: Path, step: int) -> dict[str, Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"checkpoint_step{step}.pt")["model"]


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def folders(tmp_path: Path, *names: str) -> list[Path]:
    """Folders of runs that all train on the same text."""
    text = write_text(tmp_path / "text")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").symlink_to(text)
    return [tmp_path / name for name in names]


# ---- the same again ----


def test_a_seed_gives_the_same_losses_and_another_does_not(tmp_path: Path, steps: list[loop.StepResult]) -> None:
    a, b, c = folders(tmp_path, "a", "b", "c")
    train(tiny_experiment(a))
    first = losses_of(steps)
    torch.rand(7)  # what came before makes no difference
    train(tiny_experiment(b))
    assert len(first) == 8
    assert losses_of(steps) == first
    assert_same_weights(weights_of(a, 8), weights_of(b, 8))
    train(tiny_experiment(c, seed=1))
    assert losses_of(steps) != first


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("shape", ["information", "increase", "whitespace-both"])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[loop.StepResult], shape: str, stop: int
) -> None:
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

    def recorded(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
        used.append([(group["lr"], group["weight_decay"]) for group in groups])
        return real(state, batches)

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
    assert summary.held_out.bits_per_byte_exact == expected.held_out.bits_per_byte_exact
    last, reference = (load_checkpoint(f / "checkpoints" / "checkpoint_step8.pt") for f in (halves, whole))
    assert last["bytes_read"] == reference["bytes_read"]
    assert last["history"] == reference["history"]
    assert last["seconds"] > load_checkpoint(stopped.value.checkpoint)["seconds"]


def test_the_newest_checkpoints_and_the_best_stay_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth = {1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 2.0, 6: 7.0, 7: 8.0}  # of the checkpoint after each step
    real = HierarchicalAutoencoder.forward

    def forward(self: HierarchicalAutoencoder, rows: Tensor, **what: bool) -> Losses:
        losses = real(self, rows, **what)
        return dataclasses.replace(losses, predict=losses.predict * 0 + worth[len(seen)]) if seen else losses

    seen: list[int] = []
    before = loop.train_step

    def counted(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        seen[:] = range(state.step)
        return before(state, batches)

    monkeypatch.setattr(Losses, "two_part", property(lambda self: self.predict * 0))
    monkeypatch.setattr(HierarchicalAutoencoder, "forward", forward)
    monkeypatch.setattr(loop, "train_step", counted)
    config = tiny_experiment(tmp_path, checkpoint_interval=1, checkpoints_kept=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            train(config)
    assert names_in(tmp_path / "checkpoints") == [f"checkpoint_step{n}.pt" for n in (2, 3, 4)]
    train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert names_in(tmp_path / "checkpoints") == [*(f"checkpoint_step{n}.pt" for n in (5, 7, 8)), "summary.json"]


def test_a_huge_learning_rate_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.train_step

    def rising(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        if state.step >= 4:
            for optimizer in state.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 30.0
        return real(state, batches)

    monkeypatch.setattr(loop, "train_step", rising)
    config = tiny_experiment(tmp_path, max_steps=12, checkpoint_interval=1, checkpoints_kept=1)
    with contextlib.suppress(TrainingError):  # whether or not the loss ends as nan
        train(config)
    kept = [step for step, _ in checkpoint.checkpoints(tmp_path / "checkpoints")]
    assert len(kept) == 2
    assert kept[0] <= 4 < kept[1]


def test_going_back_sets_aside_what_came_after(
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


def test_going_on_in_another_folder_leaves_both_runs_whole(tmp_path: Path) -> None:
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


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_accumulated_batches_weigh_as_one_large_batch(
    tmp_path: Path, steps: list[loop.StepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CUT", "_STRAY"):  # what is learned beside the text is drawn anew for each batch
        monkeypatch.setattr(segment_parts, name, 0.0)
    # Documents much longer than a row: all rows of the first step have equally many bytes.
    write_text(tmp_path / "text", documents=4, words=4000)
    config = tiny_experiment(tmp_path, "fixed", max_steps=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, repetition_weight=1.0))
    large = train(dataclasses.replace(config, batch_size=4, checkpoint_dir="large"))
    accumulated = train(dataclasses.replace(config, gradient_accumulation_steps=2, checkpoint_dir="accumulated"))
    small = train(dataclasses.replace(config, checkpoint_dir="small"))
    norms = [step.gradient_norm for step in steps]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert abs(norms[2] / norms[0] - 1) > 4e-3
    read = [load_checkpoint(Path(name) / "checkpoint_step1.pt")["bytes_read"] for name in ("large", "accumulated")]
    assert read[0] == read[1]
    assert large.steps == accumulated.steps == small.steps == 1


# ---- what a run leaves ----


def test_a_run_learns_and_its_summary_is_whole(tmp_path: Path, steps: list[loop.StepResult]) -> None:
    summary = train(tiny_experiment(tmp_path, "threshold-fixed", max_steps=40, validation_interval=20))
    losses = losses_of(steps)
    assert losses[-1] < losses[0]
    written = json.loads((tmp_path / "checkpoints" / "summary.json").read_text())
    plain = dataclasses.asdict(summary)
    measured = plain.pop("held_out")
    measured["held_out_bytes"] = measured.pop("bytes")
    assert written == json.loads(json.dumps(plain | measured))
    shares = ("byte_accuracy", "byte_accuracy_shuffled_codes", "sequence_accuracy")
    numbers = ("bits_per_byte_exact", "bits_per_byte_two_part", "train_bytes_per_second", "seconds")
    assert all(0 <= written[name] <= 1 for name in shares)
    assert all(0 < written[name] < math.inf for name in (*numbers, "peak_memory_bytes"))
    assert written["peak_memory_bytes"] > 1 << 26
    assert written["steps"] == 40
    model, payload = load_model(tmp_path / "checkpoints" / "checkpoint_step40.pt", torch.device("cpu"))
    assert written["parameters"] == sum(p.numel() for p in model.parameters())
    assert written["train_bytes_per_second"] == pytest.approx(payload["bytes_read"] / payload["training_seconds"])
    assert payload["training_seconds"] < written["seconds"]
    assert len(written["levels"]) == 2
    for level in written["levels"]:
        assert set(level) == {"bytes_per_code", "raw_code_bits_per_byte", "codebook_used_fraction"}
        assert 0 < level["codebook_used_fraction"] <= 1
    assert written["levels"][1]["bytes_per_code"] > written["levels"][0]["bytes_per_code"] > 1
    bits = 2 * math.log2(16)  # two codes of 16 a segment
    for level in written["levels"]:
        assert level["raw_code_bits_per_byte"] == pytest.approx(bits / level["bytes_per_code"])


def test_a_run_is_tracked(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = tiny_experiment(tmp_path, project_name="tiny", validation_interval=4, generation_interval=4, max_steps=6)
    train(config)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/tiny/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params["learning_rate"] == str(config.learning_rate)
    assert run.data.params["model.levels.0.compressor.segmentation.rule"] == "information"
    for name in ("train/loss", "gradient_norm", "learning_rate", "held_out/bits_per_byte_exact"):
        assert math.isfinite(run.data.metrics[name])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [2, 4, 6]
    assert [p.step for p in client.get_metric_history(run.info.run_id, "held_out/byte_accuracy")] == [4, 6]
    artifacts = {path.name for path in (tmp_path / "mlruns" / "tiny" / "artifacts").rglob("*") if path.is_file()}
    plots = {f"{name}_step6.png" for name in ("segment_lengths", "code_usage", "entropy_trace", "loss_curves")}
    assert {"config.json", "summary.txt", "step4.txt", "step6.txt", *plots} <= artifacts


def test_a_run_says_that_its_schedule_is_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_experiment(tmp_path, max_steps=3))
    assert "it is shortened: warmup_steps=1 scheduler_specific_kwargs.num_decay_steps=2" in capsys.readouterr().out
    train(tiny_experiment(tmp_path, max_steps=6))
    assert "shortened" not in capsys.readouterr().out


def test_measuring_is_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.evaluate_held_out

    def slow(*arguments: Any, **settings: Any) -> HeldOutReport:
        time.sleep(30)
        return real(*arguments, **settings)

    # A clock that only sleeping moves, and that a step moves by a second.
    clock, train_step = [0.0], loop.train_step
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def of_a_second(state: RunState, batches: Iterator[Tensor]) -> loop.StepResult | None:
        time.sleep(1)
        return train_step(state, batches)

    monkeypatch.setattr(loop, "evaluate_held_out", slow)
    monkeypatch.setattr(loop, "train_step", of_a_second)
    summary = train(tiny_experiment(tmp_path, validation_interval=3))
    read = load_checkpoint(tmp_path / "checkpoints" / "checkpoint_step8.pt")["bytes_read"]
    assert summary.train_bytes_per_second == pytest.approx(read / 8)
    assert summary.seconds == 8 + 2 * 30


def test_very_little_held_out_text_is_enough(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("some words to train on, again and again. " * 20)
    (tmp_path / "text" / "validation.txt").write_text("x")
    summary = train(tiny_experiment(tmp_path, max_steps=2))
    assert summary.held_out.bytes == 1


def test_the_training_ends_with_the_last_epoch(tmp_path: Path) -> None:
    summary = train(tiny_experiment(tmp_path, num_epochs=1, max_steps=None))
    size = sum(path.stat().st_size for path in (tmp_path / "text").glob("train*"))
    assert summary.steps == pytest.approx(size / 128, abs=2)


def test_a_second_run_moves_the_first_out_of_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    train(tiny_experiment(tmp_path))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"checkpoint_step8.pt", "summary.json"}
    for _ in range(2):
        train(tiny_experiment(tmp_path, max_steps=3))
    assert "earlier" in capsys.readouterr().out
    aside = [path for path in (folder / "earlier").iterdir() if (path / "checkpoint_step8.pt").exists()]
    assert {path.name: path.read_bytes() for path in aside[0].iterdir()} == before
    assert len(list((folder / "earlier").iterdir())) == 2
    assert names_in(folder) == ["checkpoint_step3.pt", "summary.json"]


# ---- what goes wrong ----


@pytest.mark.parametrize("scheduler_type", ["cosine", "linear", "constant_with_warmup", "inverse_sqrt"])
def test_schedules_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[loop.StepResult], scheduler_type: str
) -> None:
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


def not_finite_at(monkeypatch: pytest.MonkeyPatch, call: int, value: float) -> None:
    """The model's loss is that value at its so-manyth forward pass in training."""
    real, calls = HierarchicalAutoencoder.forward, [0]

    def broken(self: HierarchicalAutoencoder, rows: Tensor, **what: bool) -> Any:
        losses = real(self, rows, **what)
        calls[0] += self.training
        return dataclasses.replace(losses, total=losses.total * value) if calls[0] == call else losses

    monkeypatch.setattr(HierarchicalAutoencoder, "forward", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    not_finite_at(monkeypatch, 5, value)
    # The checkpoint of step 4 is what the loss came from, so the one before it is advised.
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step 5\b.*resume_from_\S*checkpoint_step2.pt$"):
        train(tiny_experiment(tmp_path, checkpoint_interval=2))
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "checkpoint_step4.pt"]
    assert all(torch.isfinite(x).all() for x in weights_of(tmp_path, 4).values())


def test_a_loss_that_is_not_finite_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite_at(monkeypatch, 3, math.nan)
    assert cli.main(["train", "--config", write_config(tmp_path / "c.py", tiny_experiment(tmp_path))]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("abstractinator: the loss became nan at step 3, ")


def test_too_large_a_learning_rate_stops_the_training(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=1, warmup_steps=0, checkpoints_kept=8)
    with pytest.raises(TrainingError, match=r"at step \d"):
        train(dataclasses.replace(config, learning_rate=1e30))
    saved = list((tmp_path / "checkpoints").glob("*.pt"))
    assert saved
    for path in saved:
        assert all(torch.isfinite(x).all() for x in load_checkpoint(path)["model"].values())


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=2)
    real, writes = torch.save, [0]

    def full(content: object, file: Any) -> None:
        writes[0] += 1
        real(content, file)
        if writes[0] == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert cli.main(["train", "--config", write_config(tmp_path / "c.py", config)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in message and "checkpoint_step2.pt" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_step2.pt"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train(dataclasses.replace(config, resume_from_checkpoint="latest")).steps == 8


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    level = config.model.levels[0]
    # A window has no weights: the checkpoint would load, and mean something else.
    predictor = dataclasses.replace(level.expander.predictor, window=3)
    expander = dataclasses.replace(level.expander, place_width=9, predictor=predictor)
    other = dataclasses.replace(config.model, levels=(dataclasses.replace(level, expander=expander),))
    with pytest.raises(CheckpointError) as caught:
        train(dataclasses.replace(config, model=other, resume_from_checkpoint="latest"))
    assert "model.levels.0.expander.place_width" in str(caught.value)
    assert "model.levels.0.expander.predictor.window" in str(caught.value)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


def test_a_checkpoint_that_lacks_what_a_resume_needs_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    path = tmp_path / "checkpoints" / "checkpoint_step2.pt"
    payload = load_checkpoint(path)
    del payload["training_seconds"]
    checkpoint.save_checkpoint(path, payload)
    with pytest.raises(CheckpointError, match="training_seconds"):
        train(dataclasses.replace(config, max_steps=4, resume_from_checkpoint="latest"))


def test_a_resumed_run_may_weigh_its_losses_anew(tmp_path: Path) -> None:
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


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    (tmp_path / "text" / "train_new.txt").write_text("one more document")
    resumed = dataclasses.replace(config, resume_from_checkpoint="checkpoints/checkpoint_step2.pt")
    with pytest.raises(CheckpointError, match="other data"):
        train(dataclasses.replace(resumed, checkpoint_dir="new"))
    with pytest.raises(CheckpointError, match="other data"):
        train(resumed)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=latest.*no checkpoint_step"):
        train(tiny_experiment(tmp_path, resume_from_checkpoint="latest"))


# ---- stops from outside ----


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals, status: int) -> None:
    config = tiny_experiment(tmp_path, max_steps=100_000, checkpoint_interval=20)
    command = [sys.executable, str(ROOT / "train.py"), "--config", write_config(tmp_path / "c.py", config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "checkpoints"
    try:
        while latest_checkpoint(folder) is None and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert f"resume_from_checkpoint={latest}" in err
    assert "Traceback" not in err
    assert load_checkpoint(latest)["step"] >= 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["_save", "evaluate_held_out"])
def test_a_signal_in_the_last_measurement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, number: signal.Signals
) -> None:
    real, config = getattr(loop, when), tiny_experiment(tmp_path, max_steps=2)
    handler = signal.getsignal(number)

    def stopping(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(loop, when, stopping)
        with pytest.raises(Interrupted) as stopped:
            train(config)
    assert stopped.value.signal_number == number
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt"]
    assert signal.getsignal(number) is handler
    resumed = dataclasses.replace(config, resume_from_checkpoint=str(stopped.value.checkpoint))
    assert train(resumed).steps == 2
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


@pytest.mark.parametrize("heard", ["nothing", "what begins"])
def test_a_reader_who_goes_away_leaves_a_checkpoint(tmp_path: Path, heard: str) -> None:
    config = tiny_experiment(tmp_path, max_steps=100_000, log_interval=1)
    command = [sys.executable, str(ROOT / "train.py"), "--config", write_config(tmp_path / "c.py", config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        begun = b""
        while heard == "what begins" and b"training:" not in begun:
            begun += os.read(process.stdout.fileno(), 1 << 16)
        process.stdout.close()
        status = process.wait(timeout=250)
    finally:
        process.kill()
    assert status == 128 + signal.SIGPIPE
    if heard == "what begins":
        latest = latest_checkpoint(tmp_path / "checkpoints")
        assert latest is not None
        assert load_checkpoint(latest)["step"] >= 1


# Trains in forked children, each going on where the one before was killed at a random moment.
KILLED = """
import os, random, signal, sys, time, torch
from abstractinator.config import load_experiment
from abstractinator.training.checkpoint import latest_checkpoint, load_checkpoint
from abstractinator.training.loop import train
torch.set_num_threads(1)
random.seed(0)
before = 0
for round in range(6):
    resume = [f"resume_from_checkpoint={'latest' if before else None}"]
    config = load_experiment(sys.argv[1], resume)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        train(config)
        os._exit(1)
    while latest_checkpoint(config.checkpoint_dir) is None or (
        load_checkpoint(latest_checkpoint(config.checkpoint_dir))["step"] <= before
    ):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended by itself"
        time.sleep(0.01)
    time.sleep(random.random() * 0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    payload = load_checkpoint(latest_checkpoint(config.checkpoint_dir))
    assert payload["step"] > before
    before = payload["step"]
print(before)
"""


def test_kills_at_random_moments_leave_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=100_000, checkpoint_interval=1, checkpoints_kept=20)
    arguments = [sys.executable, "-c", KILLED, write_config(tmp_path / "c.py", config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this code, not an installed one
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6


def test_the_autoencoder_trains_alone_at_first(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, autoencoder_fraction=0.5)
    corpus = open_corpus(config.data)
    loader = ReadAhead(train_loader(corpus, config.sequence_length, config.batch_size, config.seed))
    state = RunState.begin(config, loader, 8, torch.device("cpu"))
    batches = state.batches()
    parts = {"top": state.model.top, "expander": state.model.levels[0].expander.blocks}
    for step in range(8):
        before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
        result = loop.train_step(state, batches)
        assert result is not None
        moved = {
            name: any(not torch.equal(a, b) for a, b in zip(before[name], part.parameters(), strict=True))
            for name, part in parts.items()
        }
        assert moved == {"top": step >= 4, "expander": step >= 1}  # the warm-up begins at 0
        guessed = math.isclose(result.losses.predict.item(), math.log(257), rel_tol=1e-5)
        assert guessed == (step < 4)
