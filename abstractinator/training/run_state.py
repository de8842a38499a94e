"""Everything of a training run that must survive it: what a checkpoint holds and how it is taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from abstractinator import __version__
from abstractinator.checkpoints.checkpoint_file import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder, Losses, ModelConfig
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import build, to_dict
from abstractinator.data import ReadAhead
from abstractinator.training.optimizers import build_optimizers
from abstractinator.training.schedule import build_schedulers, move_to

# Settings under `model` that say how it learns and not what it is, whatever group they stand in.
_TRAINING_ONLY = {
    "predict_loss_weight",
    "reconstruction_loss_weight",
    "top_lm_loss_weight",
    "rate_loss_weight",
    "aux_lm_loss_weight",
    "repetition_weight",
    "train_fraction",
    "decay",
    "commitment",
    "revive_after",
}


@dataclass
class RunState:
    """A model in training with all that moves along with it.

    step: optimizer steps done. bytes_read: bytes trained on. seconds: spent in the loop, measurements, samples and
    checkpoints included. training_seconds: spent in the steps alone. Both go over all sessions.
    history: [step, exact, two-part] bits per byte as logged. written: this run's checkpoints by name,
    oldest first, and what each is worth: the loss of the step after it, infinite until that is known.
    """

    config: ExperimentConfig
    total_steps: int
    model: HierarchicalAutoencoder
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[LambdaLR]
    loader: ReadAhead
    step: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    tracking_run_id: str | None = None
    history: list[list[float]] = field(default_factory=list)
    written: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        config: ExperimentConfig,
        loader: ReadAhead,
        total_steps: int,
        device: torch.device,
        wanted_steps: int | None = None,
    ) -> RunState:
        """A new run: the model is initialised from config.seed. wanted_steps: without the limit of max_minutes."""
        torch.manual_seed(config.seed)
        model = HierarchicalAutoencoder(config.model).to(device)
        optimizers = build_optimizers(
            model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=config.weight_decay,
        )
        schedulers = build_schedulers(config, optimizers, total_steps, wanted_steps)
        return cls(config, total_steps, model, optimizers, schedulers, loader)

    def save(self, path: Path) -> None:
        """Writes a checkpoint, whole or not at all. Raises CheckpointError."""
        payload = {
            "version": __version__,
            "config": to_dict(self.config),
            "total_steps": self.total_steps,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),
            "random": random_state(),
            "step": self.step,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "tracking_run_id": self.tracking_run_id,
            "history": self.history,
            "written": self.written,
        }
        save_checkpoint(path, payload)

    def judge_checkpoint(self, losses: Losses) -> None:
        """Notes what the newest checkpoint is worth; `losses` are those of a step that began with its weights."""
        newest = next(reversed(self.written), None)
        if newest is not None and self.written[newest] == math.inf:
            self.written[newest] = float((losses.predict + losses.two_part).detach())

    @property
    def best_checkpoint(self) -> str | None:
        """The one of `written` after which the loss was lowest; None where none is known to be good."""
        judged = {name: loss for name, loss in self.written.items() if loss < math.inf}
        return min(judged, key=judged.__getitem__, default=None)

    def batches(self) -> Iterator[Tensor]:
        """The batches that come next. Raises CheckpointError where the run was resumed with other data."""
        try:
            return iter(self.loader)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint was trained on other data: {error}") from error

    def restore(self, path: Path) -> None:
        """Goes on where the checkpoint was written, by the settings in force now: learning rates, weight decay and
        schedule are those of `config`. Raises CheckpointError where it is of another model or version."""
        payload = load_checkpoint(path)
        _check_same_model(payload, self.config, path)
        try:
            self._take(payload)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} was written by version {payload.get('version', 'unknown')} and cannot be gone on from by this "
                f"one ({__version__}): {str(error).splitlines()[0]}"
            ) from error

    def _take(self, payload: dict[str, Any]) -> None:
        self.model.load_state_dict(payload["model"])
        self.step, self.bytes_read = payload["step"], payload["bytes_read"]
        self.seconds, self.training_seconds = payload["seconds"], payload["training_seconds"]
        for optimizer, saved in zip(self.optimizers, payload["optimizers"], strict=True):
            settings = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": settings})
        for scheduler in self.schedulers:
            move_to(scheduler, self.step)
        self.loader.load_state_dict(payload["loader"])
        self.tracking_run_id = payload["tracking_run_id"]
        self.history, self.written = payload["history"], payload["written"]
        set_random_state(payload["random"])


def check_model(config: ExperimentConfig) -> None:
    """Raises ValueError for a model that cannot be built; what is built is thrown away."""
    HierarchicalAutoencoder(config.model)


def planned_steps(path: Path, config: ExperimentConfig) -> int | None:
    """The steps of the run that a checkpoint is of, where `config` limits it as it was limited then; a resumed run ends
    where it would have ended, however fast the machine is now. None where the limits are others now, or none of time.

    Raises CheckpointError, also where the checkpoint is of another model.
    """
    payload = load_checkpoint(path)
    _check_same_model(payload, config, path)
    limits = ("max_minutes", "max_steps", "num_epochs")
    then = payload["config"]
    same = all(then.get(name) == getattr(config, name) for name in limits)
    return payload["total_steps"] if same and config.max_minutes is not None else None


def load_model(path: str | Path, device: torch.device) -> tuple[HierarchicalAutoencoder, dict[str, Any]]:
    """The model of a checkpoint, or of the newest in a folder, in eval mode, and the checkpoint's other contents.

    Raises CheckpointError.
    """
    path = latest_checkpoint(path) or path
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


def _check_same_model(payload: dict[str, Any], config: ExperimentConfig, path: Path) -> None:
    """What only steers the training may differ; everything else says what the weights mean."""
    different = sorted(_differences(payload["config"].get("model"), to_dict(config)["model"], "model"))
    if different:
        raise CheckpointError(
            f"{path} is of another model; these settings differ: {', '.join(different[:8])}. Resume with the "
            "settings it was trained with, or start a new run without resume_from_checkpoint"
        )


def _differences(a: Any, b: Any, where: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = (a.keys() | b.keys()) - _TRAINING_ONLY
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{where}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]
