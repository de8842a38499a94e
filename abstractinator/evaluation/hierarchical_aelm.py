"""`hier_ae`: a HierarchicalAutoencoder under the harness. Importing this module registers the name.

import abstractinator.evaluation.hierarchical_aelm
lm_eval.simple_evaluate(model="hier_ae", model_args="checkpoint=checkpoints/checkpoint_step1300.pt", tasks=[…])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import lm_eval.models  # noqa: F401  with a model registered, the harness would not look for its own any more
import torch
from lm_eval.api.registry import register_model

from abstractinator.checkpoints.checkpoint_file import latest_checkpoint
from abstractinator.components.hierarchical.generation import generate_bytes
from abstractinator.components.sampling import GenerationConfig, Mode
from abstractinator.evaluation.byte_lm import ByteLM
from abstractinator.evaluation.model_args import refuse_unknown
from abstractinator.evaluation.scoring import (
    Passage,
    Score,
    next_byte_logits,
    scores_from_logits,
    two_part_scores,
)
from abstractinator.training.run_state import load_model

Scoring = Literal["exact", "two_part"]
Precision = Literal["float32", "bfloat16"]

_LENGTH_FACTOR = 8


@register_model("hier_ae")
class HierarchicalAELM(ByteLM):
    """A checkpoint as the harness sees it.

    checkpoint: a file that a training wrote, or a folder, of which the newest counts. scoring: `exact`, −log p(x) of
    the predict path, the scores of a continuation's pieces adding up; or `two_part`, −log p(codes) − log p(bytes |
    codes), an upper bound of what the continuation costs (see two_part_scores). max_length: see ByteLM; by default 8
    times the rows it was trained on, up to where bits per byte were seen not to rise: attention windows set no bound of
    their own. dtype: of scoring, float32, or bfloat16 for autocast, in which batches agree less closely. generation:
    mode of generate_until, see GenerationConfig. device, batch_size, max_batch_size: see ByteLM.

    Raises ValueError for an argument that is unknown or out of range, CheckpointError for the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | int | None = None,
        scoring: str = "exact",
        max_length: int | None = None,
        dtype: str = "float32",
        generation: str = "exact",
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, HierarchicalAELM, "hier_ae")
        if checkpoint is None or checkpoint == "":
            raise ValueError(
                "hier_ae needs the model argument checkpoint=…, a file that a training wrote, or its folder"
            )
        _check_choice("scoring", scoring, get_args(Scoring))
        _check_choice("dtype", dtype, get_args(Precision))
        _check_choice("generation", generation, get_args(Mode))
        path = str(latest_checkpoint(str(checkpoint)) or checkpoint)  # the harness makes a number of digits
        model, payload = load_model(path, torch.device("cpu"))
        trained_length = payload["config"]["sequence_length"]
        super().__init__(
            max_length=_LENGTH_FACTOR * trained_length if max_length is None else max_length,
            device=device,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )
        self.model = model.to(self.device)
        self.scoring, self.dtype, self.generation = scoring, dtype, generation
        self._checkpoint, self._steps, self._bytes_read = path, payload["step"], payload["bytes_read"]

    def score(self, passages: Sequence[Passage]) -> list[Score]:
        with self._precision():
            if self.scoring == "two_part":
                return two_part_scores(self.model, passages)
            return scores_from_logits(next_byte_logits(self.model, passages), passages)

    def windows(self, text: bytes) -> Any:
        """As ByteLM has it; in two parts without the byte before, which its segment would pay for once more."""
        for window in super().windows(text):
            yield replace(window, context=b"") if self.scoring == "two_part" else window

    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        return generate_bytes(self.model, prompts, replace(config, mode=self.generation))  # type: ignore[arg-type]

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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
