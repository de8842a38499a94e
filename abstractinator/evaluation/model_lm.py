"""Checkpoints of every kind under the harness. Importing this module registers each kind under its name.

import abstractinator.evaluation.model_lm
lm_eval.simple_evaluate(model="KIND", model_args="checkpoint=checkpoints/checkpoint_step1300.pt", tasks=[…])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import lm_eval.models  # noqa: F401  with a model registered, the harness would not look for its own any more
import torch
from lm_eval.api.registry import get_model, model_registry, register_model

from abstractinator import registry
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.models import load_model
from abstractinator.contract.capabilities import Generates, Passage, Score, Scores, require
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.evaluation.byte_lm import ByteLM
from abstractinator.evaluation.model_args import refuse_unknown

_PRECISIONS = ("float32", "bfloat16")


class ModelLM(ByteLM):
    """A checkpoint as the harness sees it.

    checkpoint: a file that a training wrote, or a folder of them (the newest one). scoring: one of the kind's
    likelihoods, by default its first. max_length: see ByteLM; by default the kind's `length_factor` times the rows it
    was trained on. dtype: of scoring, float32, or bfloat16 for autocast, in which batches agree less closely.
    generation: one of the kind's modes, for generate_until. device, batch_size, max_batch_size: see ByteLM.

    Raises ValueError for an argument that is unknown or out of range, CheckpointError for the checkpoint.
    """

    kind: str

    def __init__(
        self,
        checkpoint: str | int | None = None,
        scoring: str | None = None,
        max_length: int | None = None,
        dtype: str = "float32",
        generation: str | None = None,
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, ModelLM, self.kind)
        if checkpoint is None or checkpoint == "":
            raise ValueError(
                f"{self.kind} needs the model argument checkpoint=…, a file that a training wrote, or its folder"
            )
        kind = registry.class_of(self.kind)
        _check_choice(self.kind, "scoring", scoring, getattr(kind, "scorings", ()))
        _check_choice(self.kind, "dtype", dtype, _PRECISIONS)
        _check_choice(self.kind, "generation", generation, getattr(kind, "modes", ()))
        path = str(latest_checkpoint(str(checkpoint)) or checkpoint)  # the harness makes a number of digits
        model, payload = load_model(path, torch.device("cpu"))
        if model.kind != self.kind:
            raise ValueError(f"{path} is a model of kind {model.kind}; use --model {model.kind}")
        longest = getattr(kind, "length_factor", 1) * payload["config"]["sequence_length"]
        super().__init__(
            max_length=longest if max_length is None else max_length,
            device=device,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )
        self.model = model.to(self.device)
        self.scoring = scoring or next(iter(getattr(kind, "scorings", ("",))))
        self.generation = generation or getattr(kind, "harness_mode", "")
        self.dtype, self._checkpoint = dtype, path
        self._steps, self._bytes_read = payload["step"], payload["bytes_read"]

    def score(self, passages: Sequence[Passage]) -> list[Score]:
        with self._precision():
            return require(self.model, Scores).score(passages, self.scoring)

    @property
    def window_context(self) -> int:
        return require(self.model, Scores).window_context[self.scoring]

    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        texts = [bytearray() for _ in prompts]
        for piece in require(self.model, Generates).stream(prompts, replace(config, mode=self.generation)):
            texts[piece.prompt] += piece.data
        return [bytes(text) for text in texts]

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to its results' `config`."""
        return {
            "scoring": self.scoring,
            "max_length": self.max_length,
            "dtype": self.dtype,
            "generation": self.generation,
            "checkpoint": self._checkpoint,
            "checkpoint_steps": self._steps,
            "checkpoint_bytes_read": self._bytes_read,
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()


def _check_choice(kind: str, name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and not choices:
        raise ValueError(f"a model of kind {kind} has no {name}; leave {name}={value} out")
    if value is not None and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def model_lm(kind: str) -> type[ModelLM]:
    """The adapter of a kind, as the harness finds it under the kind's name."""
    register_kinds()
    found: type[ModelLM] = get_model(kind)
    return found


def register_kinds() -> None:
    """Registers every kind that is not registered yet under its name."""
    for name in registry.names():
        if name not in model_registry:
            register_model(name)(type(f"ModelLM_{name}", (ModelLM,), {"kind": name}))


register_kinds()
