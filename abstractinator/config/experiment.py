"""The settings of an experiment: what `exp_config` may say, with types, meanings and defaults.

The defaults are the embedded preset, which trains on a laptop in minutes. `load_experiment` is the one way
from a file and command-line overrides to a checked ExperimentConfig.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from abstractinator import registry
from abstractinator.config.settings import ChosenByKind, apply_overrides, build, load_config_file
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.data.data_config import DataConfig

Device = Literal["auto", "cpu", "cuda", "mps"]
_MODEL = ChosenByKind(registry.DEFAULT, registry.names, registry.config_of)
_LARGEST = {"sequence_length": 1 << 26, "batch_size": 1 << 20, "gradient_accumulation_steps": 1 << 20}


@dataclass(frozen=True)
class ExperimentConfig:
    """One training run, whole. Every key of `exp_config` is a field here or in a part of it."""

    # Names: checkpoints of a run lie in checkpoint_dir, its metrics in ./mlruns/<project_name>; None as
    # project_name switches MLflow off.
    run_name: str = "default"
    project_name: str | None = "abstractinator"

    # The settings of a kind of model: model.kind names it, and decides which others there are.
    model: Annotated[Any, _MODEL] = field(default_factory=lambda: registry.config_of(registry.DEFAULT)())
    data: DataConfig = field(default_factory=DataConfig)

    # auto takes CUDA, then MPS, then the CPU. On a CPU, one seed gives the same losses every time, if the number of
    # steps is the same (see max_minutes).
    device: Device = "auto"
    seed: int = 0
    # bf16 autocast where the processor has it, over fp32 master weights; False computes in fp32.
    mixed_precision: bool = True

    # Bytes in a row, rows in a batch, batches in an optimizer step.
    sequence_length: int = 1024
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    # The training ends after max_steps optimizer steps or num_epochs, whichever comes first. Where max_minutes of
    # training (without measurements) are too short for that, steps are left out while it runs: each step then counts
    # for more than one in the schedule, so that the whole schedule fits into the time.
    max_steps: int | None = 1300
    num_epochs: int | None = None
    max_minutes: float | None = 7.2
    # Repeats a run that max_minutes had shortened: (step, stride) pairs, as such a run prints them at its end.
    pace: tuple[tuple[int, float], ...] | None = None

    # learning_rate: AdamW's, for embeddings, output layers, norms. muon_learning_rate: for matrices.
    learning_rate: float = 2e-2
    muon_learning_rate: float = 0.04
    weight_decay: float = 0.1
    gradient_clip_norm: float = 1.0
    # warmup_stable_decay, cosine, linear or constant (see training/schedule.py), and its own settings. In a training
    # that is shorter than warm-up and decay together, both are shortened in proportion.
    scheduler_type: str = "warmup_stable_decay"
    warmup_steps: int = 10
    scheduler_specific_kwargs: dict[str, Any] = field(default_factory=lambda: {"num_decay_steps": 500})

    # Steps between two of each: a line in the log, a measurement on held-out documents, a sample, a checkpoint.
    log_interval: int = 10
    validation_interval: int = 650
    generation_interval: int = 650
    checkpoint_interval: int = 175
    sample_prompt_for_generation: str = "def main(argv):\n"
    # How samples are drawn; they are shown in all of the kind's sample modes, whatever its `mode` says.
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_bytes=240, no_repeat_ngram_size=24, seed=0)
    )

    checkpoint_dir: str = "checkpoints"
    # How many of the newest checkpoints are kept. The best one on held-out text is kept, too: too high a
    # learning rate spoils the weights long before the loss is infinite.
    checkpoints_kept: int = 2
    # A file, or `latest` for the newest one in checkpoint_dir.
    resume_from_checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.sequence_length < 2:
            raise ValueError(f"sequence_length must be at least 2, not {self.sequence_length}")
        if self.max_steps is None and self.num_epochs is None:
            raise ValueError("max_steps and num_epochs are both None; set one of them, or the training never ends")
        if self.max_steps is None and self.data.dataset_name is not None:
            raise ValueError("the size of a streamed data set is not known before it is read: set max_steps")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be above 0, not {self.max_minutes}")
        for name in ("learning_rate", "muon_learning_rate", "gradient_clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name, most in _LARGEST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most:,}, not {getattr(self, name):,}")
        if self.project_name is not None and not is_plain_name(self.project_name):
            raise ValueError(
                f"project_name must be a plain name, as it becomes a folder in mlruns, not {self.project_name!r}"
            )
        if self.pace is not None:
            _check_pace(self.pace)
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be 0 or more and below 2**64, not {self.seed}")


_AT_LEAST_ONE = (
    "batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_epochs",
    "log_interval",
    "validation_interval",
    "generation_interval",
    "checkpoint_interval",
    "checkpoints_kept",
)


def _check_pace(pace: tuple[tuple[int, float], ...]) -> None:
    """Raises ValueError for a pace that no training can follow."""
    if not pace:
        raise ValueError("pace is empty; give [step, stride] pairs, or None")
    steps, strides = [step for step, _ in pace], [stride for _, stride in pace]
    if steps != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"the steps of pace must ascend and be 0 or more, not {', '.join(map(str, steps))}")
    for stride in strides:
        if not 1 <= stride < math.inf:
            raise ValueError(f"each stride of pace must be a finite number of at least 1, not {stride}")


def is_plain_name(name: str) -> bool:
    """Whether a folder of this name lies inside its parent folder."""
    return bool(name.strip(" .")) and not any(character in name for character in "/\\\0") and len(name) <= 200


def load_experiment(path: str | Path | None, overrides: list[str]) -> ExperimentConfig:
    """The checked settings of a config file (None for the defaults) with `key.sub=value` overrides over them.

    Raises ConfigError, which names the key and what to do.
    """
    raw = load_config_file(path) if path is not None else {}
    return build(ExperimentConfig, apply_overrides(raw, overrides, ExperimentConfig))
