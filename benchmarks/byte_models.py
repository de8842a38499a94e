"""What the model is compared with under the harness: a flat byte transformer, and chance. Scored by the same code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from torch import Tensor

from abstractinator.atomic_file import atomic_write
from abstractinator.components.passages import (
    CLASSES,
    Passage,
    Score,
    padded_rows,
    scored_places,
    scores_from_logits,
)
from abstractinator.components.sampling import Sampler, WrittenText
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.evaluation.byte_lm import ByteLM
from abstractinator.evaluation.model_args import refuse_unknown
from benchmarks.flat_transformer import FlatByteTransformer

_KEPT = [*range(ByteTokenizer.BYTES), ByteTokenizer.EOS]  # of the flat transformer's classes, those that follow a byte


def save_flat(path: Path, model: FlatByteTransformer, sequence_length: int) -> None:
    """Writes what FlatLM reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": vars(model.config), "model": model.state_dict(), "sequence_length": sequence_length}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


@register_model("flat_bytes")
class FlatLM(ByteLM):
    """A flat byte transformer that `save_flat` wrote.

    max_length: by default the length of the rows it was trained on; full attention does not reach beyond. The rest:
    see ByteLM.
    """

    def __init__(
        self,
        checkpoint: str,
        max_length: int | None = None,
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, FlatLM, "flat_bytes")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        super().__init__(
            max_length=content["sequence_length"] if max_length is None else max_length,
            device=device,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )
        model = FlatByteTransformer(**content["config"])
        model.load_state_dict(content["model"])
        self.model = model.to(self.device).eval()

    @torch.no_grad()
    def score(self, passages: Sequence[Passage]) -> list[Score]:
        rows, places = scored_places(passages, self.device)
        logits = self.model.logits(padded_rows(passages, self.device)[:, :-1])
        return scores_from_logits(logits[rows, places - 1][:, _KEPT], passages)

    @torch.no_grad()
    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        """Byte by byte, the whole text read anew for each: slow, and right."""
        sample, texts = Sampler(config, self.device), [bytearray(prompt) for prompt in prompts]
        written = [WrittenText(prompt, config) for prompt in prompts]
        while going := [i for i, text in enumerate(written) if not text.ended]:
            passages = [Passage(bytes(texts[i][-self.max_length :]), b"\0") for i in going]
            rows, places = scored_places(passages, self.device)
            logits = self.model.logits(padded_rows(passages, self.device)[:, :-1])[rows, places - 1]
            for i, byte in zip(going, sample(logits[:, _KEPT]).tolist(), strict=True):
                if byte < ByteTokenizer.BYTES:
                    texts[i].append(byte)
                    written[i].write(bytes([byte]))
                else:
                    written[i].end()
        return [text.take() for text in written]

    def get_model_info(self) -> dict[str, Any]:
        return {"scoring": "exact", "max_length": self.max_length, "model_num_parameters": _count(self.model)}


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@register_model("chance_bytes")
class ChanceLM(ByteLM):
    """Every byte, and the end, with probability 1/257: log₂ 257 = 8.006 bits a byte, and the shortest answer wins."""

    def __init__(self, batch_size: int | str = "auto", max_batch_size: int | None = None, **_: Any) -> None:
        super().__init__(max_length=2**20, device="cpu", batch_size=batch_size, max_batch_size=max_batch_size)

    def score(self, passages: Sequence[Passage]) -> list[Score]:
        return [Score(len(passage.continuation) * math.log(CLASSES), False) for passage in passages]

    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        sample, uniform = Sampler(config, self.device), Tensor(len(prompts), ByteTokenizer.BYTES).zero_()
        columns = [sample(uniform).tolist() for _ in range(config.max_new_bytes)]
        written = [WrittenText(prompt, config) for prompt in prompts]
        for text, row in zip(written, zip(*columns, strict=True), strict=True):
            text.write(bytes(row))
        return [text.take() for text in written]
