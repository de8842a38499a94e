"""Everything of a training run that a checkpoint keeps, and how a run is begun and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abstractinator import __version__, registry
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.checkpoints.checkpoint_folder import best_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.random_state import random_state, set_random_state
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError, to_dict
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import Batch, Model
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.data import ReadAhead
from abstractinator.messages import first_line
from abstractinator.training.clock import Clock
from abstractinator.training.optimizers import build_optimizers, load_states
from abstractinator.training.schedule import Schedule, build_schedule


class TrainingError(ValueError):
    """The training cannot continue; the message says at which step and what to do."""


@dataclass
class RunState:
    """A model in training, with all that changes along with it.

    base_rates: the learning rates of the settings, one for each optimizer. bytes_read, rows_read: what was trained on.
    seconds: time in the loop, with measurements, samples and checkpoints; the clock has that of the steps alone. Both
    are over all sessions. history: (step, reported means) of the logged steps. written: this run's checkpoints, oldest
    first, with their headline metric, None where it was not measured. finite: whether all losses and gradients since
    the last check were finite.
    """

    config: ExperimentConfig
    model: Model
    optimizers: list[torch.optim.Optimizer]
    base_rates: list[float]
    schedule: Schedule
    clock: Clock
    loader: ReadAhead
    bytes_read: int = 0
    rows_read: int = 0
    seconds: float = 0.0
    tracking_run_id: str | None = None
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    written: dict[str, float | None] = field(default_factory=dict)
    finite: Tensor | None = None
    checked_step: int = 0

    @classmethod
    def begin(cls, config: ExperimentConfig, model: Model, loader: ReadAhead, planned_steps: int) -> RunState:
        """A new run of `planned_steps` steps; the model is on its device."""
        optimizers = build_optimizers(
            model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=config.weight_decay,
        )
        limit = None if config.max_minutes is None else 60 * config.max_minutes
        pace = [(step, stride) for step, stride in config.pace or ()]
        return cls(
            config,
            model,
            optimizers,
            [optimizer.param_groups[0]["lr"] for optimizer in optimizers],
            build_schedule(config, planned_steps),
            Clock(planned_steps, None if pace else limit, pace),
            loader,
        )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.clock.step

    def set_learning_rates(self) -> None:
        """Gives the optimizers the rates of the next step."""
        factor = self.schedule(self.clock.position)
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def check_finite(self) -> None:
        """Raises TrainingError where a loss or a gradient since the last check was not finite.

        Reading the flag waits for a GPU, so this is called where results are read anyway, and before anything is saved.
        """
        if self.finite is not None and not self.finite:
            best = best_checkpoint(self.written) or next(reversed(self.written), None)
            again = f"resume_from_checkpoint={Path(self.config.checkpoint_dir) / best}" if best else "start again"
            raise TrainingError(
                f"the loss or its gradient became infinite or NaN in steps {self.checked_step + 1} to {self.step}, and "
                "the training stopped; nothing of these steps was saved. Lower learning_rate or muon_learning_rate, or "
                f"raise warmup_steps, and {again}"
            )
        self.finite, self.checked_step = None, self.step

    def save(self, path: Path) -> None:
        """Writes a checkpoint atomically. Raises CheckpointError, and TrainingError for weights that have diverged."""
        self.check_finite()
        payload = {
            "version": __version__,
            "kind": self.model.kind,
            "config": to_dict(self.config),
            "tokenizer": self.model.tokenizer.source,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),
            "random": random_state(),
            "step": self.step,
            "planned_steps": self.clock.planned,
            "clock": self.clock.state_dict(),
            "bytes_read": self.bytes_read,
            "rows_read": self.rows_read,
            "seconds": self.seconds,
            "tracking_run_id": self.tracking_run_id,
            "history": [list(entry) for entry in self.history],
            "written": self.written,
        }
        save_checkpoint(path, payload)

    def restore(self, payload: dict[str, Any], path: Path) -> None:
        """Resumes from the contents of a checkpoint of the same model. Learning rates, weight decay and schedule are
        those of `config`. Raises CheckpointError where the contents do not fit."""
        try:
            self._restore(payload)
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed: {_reason(error)}. Use an earlier checkpoint, or the version that wrote it "
                f"({payload.get('version', 'unknown')}; this is {__version__})"
            ) from error

    def _restore(self, payload: dict[str, Any]) -> None:
        self.model.load_state_dict(payload["model"])
        load_states(self.optimizers, payload["optimizers"])
        self.clock.load_state_dict(payload["clock"])
        self.bytes_read, self.rows_read = payload["bytes_read"], payload["rows_read"]
        if self.config.num_epochs is not None:
            self.clock.position = self._position_in_epochs(payload["config"])
        self.seconds, self.checked_step = payload["seconds"], self.step
        self.loader.load_state_dict(payload["loader"])
        self.tracking_run_id = payload["tracking_run_id"]
        self.history = [(step, means) for step, means in payload["history"]]
        self.written = dict(payload["written"])
        set_random_state(payload["random"])

    def _position_in_epochs(self, before: dict[str, Any]) -> float:
        """Planned steps over, in steps of the rows that a step has now; before: the settings until now.

        An epoch is counted in rows, whatever the batches were. In a run that is limited in time, a planned step is no
        step that was made, and the share of the plan that is over stays.
        """
        rows = self.config.batch_size * self.config.gradient_accumulation_steps
        if self.clock.pace:
            return self.clock.position * (before["batch_size"] * before["gradient_accumulation_steps"] / rows)
        whole, rest = divmod(self.rows_read, rows)
        return whole + rest / rows if rest else whole

    def batches(self) -> Iterator[Batch]:
        """The batches that come next. Raises CheckpointError where the run is resumed with other data."""
        try:
            return iter(self.loader)
        except ValueError as error:
            raise CheckpointError(
                f"cannot resume: the checkpoint was trained on different data ({error}). Start a new run, or give the "
                "same data settings"
            ) from error


def _reason(error: Exception) -> str:
    return f"it lacks the entry {error}" if isinstance(error, KeyError) else first_line(error)


def new_model(config: ExperimentConfig, device: torch.device, tokenizer: Tokenizer | None = None) -> Model:
    """The model of the settings, initialised from config.seed. tokenizer: that of config.data; None is that of bytes.
    Raises ConfigError where it cannot be built, ValueError for a kind that does not take the tokenizer."""
    torch.manual_seed(config.seed)
    try:
        return registry.new_model(config.model, tokenizer or ByteTokenizer()).to(device)
    except (RuntimeError, OverflowError) as error:  # above all, it does not fit into memory
        raise ConfigError(
            f"the model of these settings cannot be built ({first_line(error)}). If it is too large, lower the sizes "
            "in `model`"
        ) from error
