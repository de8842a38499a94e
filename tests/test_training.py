"""Training runs from beginning to end: repeatable, resumable, and never losing a good checkpoint."""

from __future__ import annotations

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
from typing import Any

import pytest
import torch
from tiny_runs import tiny_experiment, write_config, write_text
from torch import Tensor

from abstractinator import cli
from abstractinator.training import checkpoint, loop
from abstractinator.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from abstractinator.training.loop import Interrupted, TrainingError, train
from abstractinator.training.run_state import RunState, load_model
from components.hierarchical_autoencoder import HierarchicalAutoencoder

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
    assert summary.bits_per_byte_exact == expected.bits_per_byte_exact
    last, reference = (load_checkpoint(f / "checkpoints" / "checkpoint_step8.pt") for f in (halves, whole))
    assert last["bytes_read"] == reference["bytes_read"]
    assert last["history"] == reference["history"]
    assert last["seconds"] > load_checkpoint(stopped.value.checkpoint)["seconds"]


def test_only_the_newest_checkpoints_stay_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=1, checkpoints_kept=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            train(config)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step3.pt", "checkpoint_step4.pt"]
    train(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step7.pt", "checkpoint_step8.pt", "summary.json"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_accumulated_batches_weigh_as_one_large_batch(tmp_path: Path, steps: list[loop.StepResult]) -> None:
    # Documents much longer than a row: all rows of the first step have equally many bytes.
    write_text(tmp_path / "text", documents=4, words=4000)
    config = tiny_experiment(tmp_path, "fixed", max_steps=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, repetition_weight=1.0))
    large = train(dataclasses.replace(config, batch_size=4, checkpoint_dir="large"))
    accumulated = train(dataclasses.replace(config, gradient_accumulation_steps=2, checkpoint_dir="accumulated"))
    small = train(dataclasses.replace(config, checkpoint_dir="small"))
    norms = [step.gradient_norm for step in steps]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert abs(norms[2] / norms[0] - 1) > 1e-2
    read = [load_checkpoint(Path(name) / "checkpoint_step1.pt")["bytes_read"] for name in ("large", "accumulated")]
    assert read[0] == read[1]
    assert large.steps == accumulated.steps == small.steps == 1


# ---- what a run leaves ----


def test_a_run_learns_and_its_summary_is_whole(tmp_path: Path, steps: list[loop.StepResult]) -> None:
    summary = train(tiny_experiment(tmp_path, "threshold-fixed", max_steps=40, validation_interval=20))
    losses = losses_of(steps)
    assert losses[-1] < losses[0]
    written = json.loads((tmp_path / "checkpoints" / "summary.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(summary)))
    shares = ("byte_accuracy", "byte_accuracy_shuffled_codes", "sequence_accuracy")
    numbers = ("bits_per_byte_exact", "bits_per_byte_two_part", "train_bytes_per_second", "seconds")
    assert all(0 <= written[name] <= 1 for name in shares)
    assert all(0 < written[name] < math.inf for name in (*numbers, "peak_memory_bytes"))
    assert written["peak_memory_bytes"] > 1 << 26
    assert written["steps"] == 40
    model, payload = load_model(tmp_path / "checkpoints" / "checkpoint_step40.pt", torch.device("cpu"))
    assert written["parameters"] == sum(p.numel() for p in model.parameters())
    assert written["train_bytes_per_second"] == pytest.approx(payload["bytes_read"] / written["seconds"])
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

    train(tiny_experiment(tmp_path, project_name="tiny", validation_interval=4, generation_interval=4, max_steps=6))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/tiny/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params["learning_rate"] == "0.003"
    assert run.data.params["model.levels.0.compressor.segmentation.rule"] == "information"
    for name in ("train/loss", "gradient_norm", "learning_rate", "held_out/bits_per_byte_exact"):
        assert math.isfinite(run.data.metrics[name])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [2, 4, 6]
    assert [p.step for p in client.get_metric_history(run.info.run_id, "held_out/byte_accuracy")] == [4, 6]
    artifacts = {path.name for path in (tmp_path / "mlruns" / "tiny" / "artifacts").rglob("*") if path.is_file()}
    plots = {f"{name}_step6.png" for name in ("segment_lengths", "code_usage", "entropy_trace", "loss_curves")}
    assert {"config.json", "summary.txt", "step4.txt", "step6.txt", *plots} <= artifacts


def test_very_little_held_out_text_is_enough(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("some words to train on, again and again. " * 20)
    (tmp_path / "text" / "validation.txt").write_text("x")
    summary = train(tiny_experiment(tmp_path, max_steps=2))
    assert summary.held_out_bytes == 1


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


@pytest.mark.parametrize(
    ("scheduler_type", "arguments", "message"),
    [
        ("cosine", {"num_decay_steps": 3}, "scheduler_specific_kwargs.*num_decay_steps"),
        ("reduce_lr_on_plateau", {}, "choose another"),
        ("cosin", {}, "cosine"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    tmp_path: Path, scheduler_type: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_experiment(tmp_path, scheduler_type=scheduler_type, scheduler_specific_kwargs=arguments))


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

    def broken(self: HierarchicalAutoencoder, rows: Tensor) -> Any:
        losses = real(self, rows)
        calls[0] += self.training
        return dataclasses.replace(losses, total=losses.total * value) if calls[0] == call else losses

    monkeypatch.setattr(HierarchicalAutoencoder, "forward", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    not_finite_at(monkeypatch, 5, value)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step 5\b"):
        train(tiny_experiment(tmp_path, checkpoint_interval=2))
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "checkpoint_step4.pt"]
    assert all(torch.isfinite(x).all() for x in weights_of(tmp_path, 4).values())


def test_a_loss_that_is_not_finite_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite_at(monkeypatch, 3, math.nan)
    assert cli.main(["train", "--config", write_config(tmp_path / "c.py", tiny_experiment(tmp_path))]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("abstractinator: the loss became nan at step 3;")


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
    other = dataclasses.replace(config.model, top_lm_loss_weight=0.5)
    level = dataclasses.replace(other.levels[0].expander, place_width=9)
    other = dataclasses.replace(other, levels=(dataclasses.replace(other.levels[0], expander=level),))
    with pytest.raises(CheckpointError) as caught:
        train(dataclasses.replace(config, model=other, resume_from_checkpoint="latest"))
    assert "model.levels.0.expander.place_width" in str(caught.value)
    assert "model.top_lm_loss_weight" in str(caught.value)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    (tmp_path / "text" / "train_new.txt").write_text("one more document")
    with pytest.raises(CheckpointError, match="other data"):
        train(dataclasses.replace(config, resume_from_checkpoint="latest"))


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
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6
