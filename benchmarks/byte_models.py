"""Chance under the harness: what every other model is to be better than."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.registry import register_model
from torch import Tensor

from abstractinator.components.passages import CLASSES
from abstractinator.components.sampling import Sampler, WrittenText
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Passage, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.evaluation.byte_lm import ByteLM


@register_model("chance_bytes")
class ChanceLM(ByteLM):
    """Every byte, and the end, with probability 1/257: log₂ 257 = 8.006 bits a byte, and the shortest answer wins."""

    def __init__(self, batch_size: int | str = "auto", max_batch_size: int | None = None, **_: Any) -> None:
        super().__init__(max_length=2**20, device="cpu", batch_size=batch_size, max_batch_size=max_batch_size)

    def score(self, passages: Sequence[Passage]) -> list[Score]:
        return [Score(len(passage.continuation) * math.log(CLASSES), False) for passage in passages]

    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        sample, uniform = Sampler(config, self.device), Tensor(len(prompts), ByteTokenizer.text_size).zero_()
        columns = [sample(uniform).tolist() for _ in range(config.max_new_bytes)]
        written = [WrittenText(prompt, config) for prompt in prompts]
        for text, row in zip(written, zip(*columns, strict=True), strict=True):
            text.write(bytes(row))
        return [text.take() for text in written]
