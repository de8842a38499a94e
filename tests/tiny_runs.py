"""A small training run, its text and its settings, that several test files share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_models import tiny_config

from abstractinator.config import ExperimentConfig
from abstractinator.data import DataConfig
from abstractinator.settings import to_dict
from components.sampling import GenerationConfig


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
