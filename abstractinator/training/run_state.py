"""Everything of a training run that must survive it: what a checkpoint holds and how it is taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import get_scheduler

from abstractinator import __version__
from abstractinator.config import ExperimentConfig
from abstractinator.settings import ConfigError, build, to_dict
from abstractinator.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from abstractinator.training.optimizers import build_optimizers
from components.hierarchical_autoencoder import HierarchicalAutoencoder, ModelConfig


@dataclass
class RunState:
    """A model in training with all that moves along with it.

    step: optimizer steps done. bytes_read: bytes trained on. seconds: spent training, over all sessions.
    history: [step, exact, two-part] bits per byte as logged. written: names of this run's checkpoints, oldest first.
    """

    config: ExperimentConfig
    total_steps: int
    model: HierarchicalAutoencoder
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[torch.optim.lr_scheduler.LRScheduler]
    loader: StatefulDataLoader
    step: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    tracking_run_id: str | None = None
    history: list[list[float]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls, config: ExperimentConfig, loader: StatefulDataLoader, total_steps: int, device: torch.device
    ) -> RunState:
        """A new run: the model is initialised from config.seed."""
        torch.manual_seed(config.seed)
        model = HierarchicalAutoencoder(config.model).to(device)
        optimizers = build_optimizers(
            model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=config.weight_decay,
        )
        schedulers = [_scheduler(config, optimizer, total_steps) for optimizer in optimizers]
        return cls(config, total_steps, model, optimizers, schedulers, loader)

    def save(self, path: Path) -> None:
        """Writes a checkpoint, whole or not at all. Raises CheckpointError."""
        payload = {
            "version": __version__,
            "config": to_dict(self.config),
            "total_steps": self.total_steps,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [_plain(scheduler.state_dict()) for scheduler in self.schedulers],
            "loader": self.loader.state_dict(),
            "random": random_state(),
            "step": self.step,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
            "tracking_run_id": self.tracking_run_id,
            "history": self.history,
            "written": self.written,
        }
        save_checkpoint(path, payload)

    def batches(self) -> Iterator[Tensor]:
        """The batches that come next. Raises CheckpointError where the run was resumed with other data."""
        try:
            return iter(self.loader)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint was trained on other data: {error}") from error

    def restore(self, path: Path) -> None:
        """Goes on where the checkpoint was written. Raises CheckpointError where it is of another model."""
        payload = load_checkpoint(path)
        _check_same_model(payload, self.config, path)
        self.model.load_state_dict(payload["model"])
        for level in self.model.levels:
            if level.compressor.frozen:
                level.compressor.freeze()
        for optimizer, state in zip(self.optimizers, payload["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(self.schedulers, payload["schedulers"], strict=True):
            scheduler.load_state_dict(scheduler.state_dict() | state)  # the functions are its own
        self.loader.load_state_dict(payload["loader"])
        self.step, self.bytes_read, self.seconds = payload["step"], payload["bytes_read"], payload["seconds"]
        self.tracking_run_id = payload["tracking_run_id"]
        self.history, self.written = payload["history"], payload["written"]
        set_random_state(payload["random"])


def load_model(path: str | Path, device: torch.device) -> tuple[HierarchicalAutoencoder, dict[str, Any]]:
    """The model of a checkpoint in eval mode, and the checkpoint's other contents. Raises CheckpointError."""
    payload = load_checkpoint(path)
    try:
        model = HierarchicalAutoencoder(build(ModelConfig, payload["config"]["model"]))
        model.load_state_dict(payload.pop("model"))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold a model that this version ({__version__}) can build; it was written by "
            f"version {payload.get('version', 'unknown')}: {str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval(), payload


def _scheduler(
    config: ExperimentConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of the settings; raises ConfigError where its arguments are not those that it takes."""
    name, arguments = config.scheduler_type, config.scheduler_specific_kwargs
    try:
        scheduler = get_scheduler(name, optimizer, config.warmup_steps, total_steps, arguments)
    except TypeError as error:
        raise ConfigError(
            f"scheduler_specific_kwargs={arguments} does not fit scheduler_type={name}: {error}"
        ) from error
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ConfigError(f"scheduler_type={name} does not follow the steps alone; choose another, such as cosine")
    return scheduler


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without the functions that it is made with."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"}


def _check_same_model(payload: dict[str, Any], config: ExperimentConfig, path: Path) -> None:
    different = sorted(_differences(payload["config"].get("model"), to_dict(config)["model"], "model"))
    if different:
        raise CheckpointError(
            f"{path} is of another model; these settings differ: {', '.join(different[:8])}. Resume with the "
            "settings it was trained with, or start a new run without resume_from_checkpoint"
        )


def _differences(a: Any, b: Any, where: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in _differences(a.get(key), b.get(key), f"{where}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]
