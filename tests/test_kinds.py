"""A kind of model that the package does not know moves in without a change to it; mistakes about kinds are told."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from tiny_evaluation import write_tasks
from tiny_kind import Bigram, BigramConfig, Silent, SilentConfig
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
from torch import nn

from abstractinator import registry
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import load_model
from abstractinator.cli import main as cli
from abstractinator.config.experiment import ExperimentConfig, load_experiment
from abstractinator.config.settings import build, to_dict
from abstractinator.contract.capabilities import Generates, Reconstructs, Scores, Shows, require
from abstractinator.contract.model import Batch, headline_parts
from abstractinator.training.loop import Interrupted, train

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two kinds are known, for one test."""
    monkeypatch.setattr(registry, "_registered", {})
    registry.register("bigram", "tiny_kind:Bigram")
    registry.register("silent", "tiny_kind:Silent")


def experiment(folder: Path, kind: str = "bigram", **changes: Any) -> ExperimentConfig:
    return tiny_experiment(folder, model={"bigram": BigramConfig, "silent": SilentConfig}[kind](), **changes)


def checkpoint_of(folder: Path, kind: str) -> str:
    train(experiment(folder, kind))
    return str(folder / "checkpoints" / "checkpoint_step8.pt")


def test_it_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    whole, halves = folders(tmp_path, "whole", "halves")
    train(experiment(whole, validation_interval=3, generation_interval=3))
    expected = losses_of(steps)
    assert expected[-1] < expected[0]
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(experiment(halves))
    first = losses_of(steps)
    torch.rand(11)
    train(experiment(halves, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights_of(whole, 8), weights_of(halves, 8))
    assert weights_of(halves, 8)["batches"] == 8


def test_samples_and_measurements_leave_no_trace_in_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a kind that draws from the global generator in training, in a measurement and in a sample."""
    modes = []
    for name in ("nll", "stream"):
        real = getattr(Bigram, name)

        def drawing(self: Bigram, *arguments: Any, real: Any = real) -> Any:
            modes.append(self.training)
            noise = torch.rand(()) if self.training else torch.rand(5)[0] * 0
            found = real(self, *arguments)
            return (found[0] * (1 + noise), found[1]) if isinstance(found, tuple) else found

        monkeypatch.setattr(Bigram, name, drawing)
    steps = recorded_steps(monkeypatch)
    seen, unseen = folders(tmp_path, "seen", "unseen")
    train(experiment(unseen))
    expected = losses_of(steps)
    modes.clear()
    train(experiment(seen, validation_interval=3, generation_interval=3, checkpoint_interval=2))
    assert losses_of(steps) == expected
    assert modes.count(True) == 8 and modes.count(False) > 8


def test_a_phase_reports_only_what_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    train(experiment(tmp_path))
    assert [list(step.parts) for step in steps] == [["nats_first"]] * 4 + [["nats_second"]] * 4


def test_parts_of_a_group_are_details() -> None:
    assert headline_parts(["group/first", "bits", "group/second", "nats"]) == ["bits", "nats"]


def test_its_metrics_and_samples_are_shown(tmp_path: Path, capsys: Output) -> None:
    train(experiment(tmp_path))
    assert "bits per byte" in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "checkpoints" / "summary.json").read_text())["bits"] < 9


def test_it_is_loaded_described_and_continues_a_prompt(tmp_path: Path, capsysbinary: Any) -> None:
    path = checkpoint_of(tmp_path, "bigram")
    model, _ = load_model(path, torch.device("cpu"))
    assert isinstance(model, Bigram) and not model.training
    capsysbinary.readouterr()
    assert cli.main(["info", path]) == 0
    assert b"bigram" in capsysbinary.readouterr().out
    assert cli.main(["generate", path, "the cat", "--max-new-bytes", "5", "--seed", "0"]) == 0
    first = capsysbinary.readouterr().out
    assert cli.main(["generate", path, "the cat", "--max-new-bytes", "5", "--seed", "0"]) == 0
    assert first == capsysbinary.readouterr().out and len(first) >= 5


def test_the_harness_scores_it(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    from abstractinator.evaluation import harness

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(harness, "TaskManager", lambda **given: manager(**given, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = checkpoint_of(tmp_path, "bigram")
    tasks = write_tasks(tmp_path / "tasks")
    words = ["evaluate", "--model", "bigram", "--model_args", f"checkpoint={path}", "--tasks", "tiny_text"]
    assert cli.main([*words, "--include_path", tasks, "--device", "cpu", "--output_path", str(tmp_path / "out")]) == 0
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert 0 < json.loads(results.read_text())["results"]["tiny_text"]["bits_per_byte,none"] < 9


def test_micro_batches_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal numbers of bytes: a step on two of them equals a step on both at once."""
    steps = recorded_steps(monkeypatch)
    together, apart = folders(tmp_path, "together", "apart")
    exact = {"max_steps": 3, "mixed_precision": False}  # bf16 sums differ by where they are rounded
    train(experiment(together, batch_size=2, **exact))
    expected = [step.values() for step in steps]
    norms = [float(step.gradient_norm) for step in steps]
    steps.clear()
    train(experiment(apart, batch_size=1, gradient_accumulation_steps=2, **exact))
    for step, values, norm in zip(steps, expected, norms, strict=True):
        assert step.values() == pytest.approx(values, rel=1e-5)
        assert float(step.gradient_norm) == pytest.approx(norm, rel=1e-4)
    counts = Silent(SilentConfig())
    assert counts.nll(torch.tensor([[256, 1, 2, 257]]))[1] == 2  # special tokens are not predicted


def test_muon_gets_hidden_layers_and_no_output_layer() -> None:
    model = Silent(SilentConfig(width=32))
    model.body = nn.ModuleDict({name: nn.Linear(32, 32) for name in ("first", "to_logits_mlp", "lm_head")})
    model.heads = nn.ModuleDict({"to_logits": nn.ModuleList([nn.Linear(32, 32)])})
    hidden = {id(parameter) for parameter in model.muon_parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in hidden]
    assert names == ["body.first.weight", "body.to_logits_mlp.weight"]


def test_a_kind_offers_what_it_defines() -> None:
    assert all(isinstance(Bigram(BigramConfig()), capability) for capability in (Generates, Scores))
    assert not isinstance(Bigram(BigramConfig()), Reconstructs)
    for capability, verb in ((Generates, "generate text"), (Scores, "score texts"), (Shows, "show figures")):
        with pytest.raises(ValueError, match=f"^a model of kind silent cannot {verb}$"):
            require(Silent(SilentConfig()), capability)


def one_line(capsys: Output, words: list[str]) -> str:
    capsys.readouterr()
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_a_kind_that_can_only_train_is_trained_and_refused_elsewhere(tmp_path: Path, capsys: Output) -> None:
    path = checkpoint_of(tmp_path, "silent")
    assert one_line(capsys, ["generate", path, "the"]).endswith("a model of kind silent cannot generate text\n")


@pytest.fixture
def silent_with_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    from abstractinator.evaluation import harness

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(harness, "TaskManager", lambda **given: manager(**given, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = checkpoint_of(tmp_path, "silent")
    words = ["evaluate", "--model", "silent", "--model_args", f"checkpoint={path}", "--device", "cpu"]
    yield [*words, "--tasks", "tiny_text", "--include_path", write_tasks(tmp_path / "tasks")]


def test_the_harness_says_that_it_cannot_be_scored(silent_with_tasks: list[str], capsys: Output) -> None:
    capsys.readouterr()
    assert cli.main(silent_with_tasks) == 2
    assert "a model of kind silent cannot score texts\n" in capsys.readouterr().err


def test_an_unknown_kind_names_those_that_there_are(tmp_path: Path, capsys: Output) -> None:
    config = write_config(tmp_path / "config.py", experiment(tmp_path))
    said = one_line(capsys, ["train", "--config", config, "model.kind=bigramm"])
    assert "model.kind must be one of hier_ae, " in said and "did you mean 'bigram'?" in said


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "tiny_kind:Nope",
            "kind broken (tiny_kind:Nope) cannot be imported: module 'tiny_kind' has no attribute 'Nope'",
        ),
        ("tiny_kind", "kind broken (tiny_kind) cannot be imported: "),
        ("tiny_kind:Sampler", "kind broken (tiny_kind:Sampler) cannot be imported: "),
        ("no_python:Kind", "kind broken (no_python:Kind) cannot be imported: "),
        ("too_old:Kind", "kind broken (too_old:Kind) cannot be imported: cannot import name 'nothing'"),
        ("nowhere:Kind", "model.kind=broken needs a package that is not installed (No module named 'nowhere')"),
        ("tiny_kind:Bigram", "kind broken (tiny_kind:Bigram) is the class of kind bigram"),
    ],
)
def test_a_kind_that_cannot_be_imported(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    (tmp_path / "no_python.py").write_text("class Kind(\n")
    (tmp_path / "too_old.py").write_text("from math import nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register("broken", target)
    assert words in one_line(capsys, ["train", "--show", "model.kind=broken"])


def test_a_setting_of_another_kind_is_refused(tmp_path: Path, capsys: Output) -> None:
    config = write_config(tmp_path / "config.py", experiment(tmp_path))
    said = one_line(capsys, ["train", "--config", config, "model.levels.0.entropy_model=None"])
    assert "unknown key `model.levels`: the kind bigram does not have it; valid keys here: kind, width\n" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.width=5", "model.kind=silent"],
        ['model={"kind":"bigram","width":5}', "model.kind=silent"],
        ["model.width=5", "seed=1", "model.kind=bigram", "model.kind=silent"],
    ],
    ids=str,
)
def test_a_kind_may_stand_after_its_settings_and_the_last_one_counts(overrides: list[str]) -> None:
    assert load_experiment(None, overrides).model == SilentConfig(width=5)


def test_settings_of_a_kind_are_checked_by_the_kind(tmp_path: Path, capsys: Output) -> None:
    config = write_config(tmp_path / "config.py", experiment(tmp_path))
    assert "width must be at least 1, not 0" in one_line(capsys, ["train", "--config", config, "model.width=0"])
    assert build(ExperimentConfig, to_dict(experiment(tmp_path))) == experiment(tmp_path)


def test_a_checkpoint_of_another_kind_is_not_resumed(tmp_path: Path) -> None:
    train(experiment(tmp_path, "silent", max_steps=2))
    with pytest.raises(CheckpointError, match=r"model\.kind"):
        train(experiment(tmp_path, "bigram", resume_from_checkpoint="latest"))


def test_a_checkpoint_of_another_kind_is_not_scored(silent_with_tasks: list[str], capsys: Output) -> None:
    capsys.readouterr()
    assert cli.main(["bigram" if word == "silent" else word for word in silent_with_tasks]) == 2
    assert "is a model of kind silent; use --model silent\n" in capsys.readouterr().err


def test_its_checkpoint_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint_of(tmp_path, "bigram")
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(CheckpointError, match=r"model\.kind must be one of hier_ae, .*not 'bigram'"):
        load_model(path, torch.device("cpu"))


def test_the_losses_are_what_they_say() -> None:
    """The test's kind itself: a uniform model costs 8 bits and a little for the special tokens."""
    model = Silent(SilentConfig())
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    batch = Batch.of(torch.randint(0, 256, (3, 50)))
    with torch.no_grad():
        sums = model.measure(batch, torch.Generator())
    assert model.metrics(sums)["bits"].value == pytest.approx(math.log2(259), rel=1e-5)
    assert dataclasses.asdict(SilentConfig())["kind"] == "silent"
