"""A small training run, its text and its settings, that several test files share."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config
from torch import Tensor

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import to_dict
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch
from abstractinator.data import DataConfig
from abstractinator.training import loop
from abstractinator.training.state import RunState
from abstractinator.training.step import StepResult


def write_text(folder: Path, documents: int = 24, words: int = 60) -> Path:
    """A folder of text files, some for training and some for validation."""
    folder.mkdir(exist_ok=True)
    random_ = random.Random(0)
    vocabulary = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "one",
        "more",
        "dog",
        "under",
        "some",
        "very",
        "old",
        "green",
        "tree",
    ]
    for number in range(documents):
        name = "validation" if number % 4 == 0 else "train"
        (folder / f"{name}_{number}.txt").write_text(" ".join(random_.choices(vocabulary, k=words)) + "\n")
    return folder


def tiny_experiment(folder: Path, shape: str = "information", **changes: Any) -> ExperimentConfig:
    """Eight steps of a tiny model on the text in folder/text, with checkpoints in folder/checkpoints."""
    path = str(folder / "text") if (folder / "text").exists() else str(write_text(folder / "text"))
    settings: dict[str, Any] = {
        "run_name": "tiny",
        "project_name": None,
        "model": tiny_config(shape),
        "data": DataConfig(path=path),
        "device": "cpu",
        "sequence_length": 64,
        "batch_size": 2,
        "max_steps": 8,
        "max_minutes": None,
        "warmup_steps": 2,
        "scheduler_specific_kwargs": {"num_decay_steps": 4},
        "log_interval": 2,
        "validation_interval": 1000,
        "generation_interval": 1000,
        "checkpoint_interval": 1000,
        "generation": GenerationConfig(max_new_bytes=8, seed=0),
        "checkpoint_dir": str(folder / "checkpoints"),
    }
    return ExperimentConfig(**(settings | changes))


def write_config(path: Path, config: ExperimentConfig) -> str:
    """The settings as a file for the command line → its path."""
    path.write_text(f"exp_config = {to_dict(config)!r}\n")
    return str(path)


def losses_of(steps: list[StepResult]) -> list[float]:
    losses = [step.loss.value.item() for step in steps]
    steps.clear()
    return losses


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """This process gets a signal during that step."""
    before = loop.train_step

    def stopping(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
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


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock")


def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> list[StepResult]:
    """The results of all optimizer steps, as they are made."""
    done: list[StepResult] = []
    real = loop.train_step

    def recorded(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
        result = real(state, batches)
        if result is not None:
            done.append(result)
        return result

    monkeypatch.setattr(loop, "train_step", recorded)
    return done
