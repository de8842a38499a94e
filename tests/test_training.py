"""Training runs from beginning to end: repeatable, and what they leave."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_config
from tiny_runs import assert_same_weights, folders, losses_of, recorded_steps, tiny_experiment, weights_of, write_text

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.models import load_model
from abstractinator.components.bottlenecks.vq import VQConfig
from abstractinator.components.hierarchical import segment_parts
from abstractinator.contract.model import Metric
from abstractinator.data import open_corpus
from abstractinator.training import loop
from abstractinator.training import step as step_module
from abstractinator.training.loop import train
from abstractinator.training.state import RunState, new_model

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_seed_gives_the_same_losses_and_another_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
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


def test_accumulated_batches_weigh_as_one_large_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    for name in ("_CUT", "_STRAY"):  # what is learned in addition to the text is drawn again for each batch
        monkeypatch.setattr(segment_parts, name, 0.0)
    # Documents much longer than a row: all rows of the first step have equally many bytes.
    write_text(tmp_path / "text", documents=4, words=4000)
    config = tiny_experiment(tmp_path, "fixed", max_steps=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, repetition_weight=1.0))
    large = train(dataclasses.replace(config, batch_size=4, checkpoint_dir="large"))
    accumulated = train(dataclasses.replace(config, gradient_accumulation_steps=2, checkpoint_dir="accumulated"))
    small = train(dataclasses.replace(config, checkpoint_dir="small"))
    norms = [step.gradient_norm.item() for step in steps]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert abs(norms[2] / norms[0] - 1) > 4e-3
    read = [load_checkpoint(Path(name) / "checkpoint_step1.pt")["bytes_read"] for name in ("large", "accumulated")]
    assert read[0] == read[1]
    assert large.steps == accumulated.steps == small.steps == 1


def test_the_autoencoder_trains_alone_at_first(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path)
    model = new_model(config, torch.device("cpu"))
    state, _ = loop._begin(config, model, open_corpus(config.data))
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
        assert ("bits_per_byte_exact" in result.parts) == (step >= 4)


def test_a_run_learns_and_its_summary_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    summary = train(tiny_experiment(tmp_path, "threshold-fixed", max_steps=40, validation_interval=20))
    losses = losses_of(steps)
    assert losses[-1] < losses[0]
    written = json.loads((tmp_path / "checkpoints" / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary.plain()))
    shares = ("byte_accuracy", "byte_accuracy_shuffled_codes", "sequence_accuracy")
    numbers = ("bits_per_byte_exact", "bits_per_byte_two_part", "train_bytes_per_second", "seconds")
    assert all(0 <= written[name] <= 1 for name in shares)
    assert all(0 < written[name] < math.inf for name in (*numbers, "peak_memory_bytes"))
    assert written["peak_memory_bytes"] > 1 << 26
    assert written["steps"] == 40
    model, payload = load_model(tmp_path / "checkpoints" / "checkpoint_step40.pt", torch.device("cpu"))
    assert written["parameters"] == sum(p.numel() for p in model.parameters())
    assert written["train_bytes_per_second"] == pytest.approx(payload["bytes_read"] / payload["clock"]["seconds"])
    assert payload["clock"]["seconds"] < written["seconds"]
    assert written["level2/bytes_per_code"] > written["level1/bytes_per_code"] > 1
    bits = 2 * math.log2(16)  # two codes of 16 a segment
    for level in ("level1", "level2"):
        assert 0 < written[f"{level}/codebook_used_fraction"] <= 1
        assert written[f"{level}/raw_code_bits_per_byte"] == pytest.approx(bits / written[f"{level}/bytes_per_code"])
    assert written["kind"] == "hier_ae"


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
    for name in ("train/loss", "gradient_norm", "learning_rate", "bytes_per_second", "held_out/bits_per_byte_exact"):
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

    def slow(*arguments: Any, **settings: Any) -> dict[str, Metric]:
        time.sleep(30)
        return real(*arguments, **settings)

    # A clock that only sleeping moves, and that a step moves by a second.
    clock, set_rates = [0.0], RunState.set_learning_rates
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(step_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def of_a_second(state: RunState) -> None:
        time.sleep(1)
        set_rates(state)

    monkeypatch.setattr(loop, "evaluate_held_out", slow)
    monkeypatch.setattr(RunState, "set_learning_rates", of_a_second)
    summary = train(tiny_experiment(tmp_path, validation_interval=3))
    read = load_checkpoint(tmp_path / "checkpoints" / "checkpoint_step8.pt")["bytes_read"]
    assert summary.train_bytes_per_second == pytest.approx(read / 8)
    assert summary.seconds == 8 + 2 * 30  # two validations, and nothing is saved before the end


def test_very_little_held_out_text_is_enough(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("some words to train on, again and again. " * 20)
    (tmp_path / "text" / "validation.txt").write_text("x")
    summary = train(tiny_experiment(tmp_path, max_steps=2))
    assert summary.held_out["bytes"].value == 1


def test_the_training_ends_with_the_last_epoch(tmp_path: Path) -> None:
    summary = train(tiny_experiment(tmp_path, num_epochs=1, max_steps=None))
    size = sum(path.stat().st_size for path in (tmp_path / "text").glob("train*"))
    assert summary.steps == pytest.approx(size / 128, abs=2)


def test_an_epoch_of_short_documents_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose ends and beginnings take as many tokens as their bytes."""
    steps = recorded_steps(monkeypatch)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "validation.txt").write_text("a few words")
    (tmp_path / "text" / "train.json").write_text(json.dumps([{"text": "ab"}] * 640))
    train(tiny_experiment(tmp_path, num_epochs=1, max_steps=None))
    assert load_checkpoint(Path(f"checkpoints/checkpoint_step{len(steps)}.pt"))["bytes_read"] == 640 * 2


def test_an_epoch_is_as_long_as_its_text_not_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "validation.txt").write_text("a few words")
    records = [json.dumps({"text": "о" * 500, "url": "x" * 3000})] * 4  # 6,000 bytes a line for 1,000 of text
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(records))
    planned = train(tiny_experiment(tmp_path, num_epochs=1, max_steps=None)).steps
    assert planned == len(steps) == math.ceil(4 * 1002 / 128)


@pytest.mark.parametrize("change", ["scheduler", "model", "checkpoint"])
def test_a_mistake_is_told_before_the_text_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    monkeypatch.setattr(loop, "open_corpus", lambda _: pytest.fail("the text was opened"))
    level = config.model.levels[0]
    compressor = dataclasses.replace(level.compressor, quantizer=VQConfig(codes_per_segment=3))
    changes: dict[str, Any] = {
        "scheduler": {"scheduler_type": "cosin"},
        "model": {
            "model": dataclasses.replace(config.model, levels=(dataclasses.replace(level, compressor=compressor),))
        },
        "checkpoint": {"model": tiny_config("whitespace-both"), "resume_from_checkpoint": "latest"},
    }
    with pytest.raises(ValueError, match={"model": "must divide"}.get(change, change)):
        train(dataclasses.replace(config, **changes[change]))
