"""The flat byte transformer with full attention and a KV cache, one position a byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from abstractinator.components.passages import padded_rows, scored_positions, scores_from_logits
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Passage, Score
from abstractinator.contract.generation_config import GenerationConfig
from benchmarks.flat_transformer import FlatByteTransformer, FlatConfig, flat_config
from benchmarks.kinds.base import Baseline, ByteSampler, Setting, as_bytes, prompt_rows, read_tokens

_FOLLOWING = [*range(ByteTokenizer.text_size), ByteTokenizer.EOS]  # of its classes, those that follow a byte


class Flat(Baseline):
    """FlatByteTransformer in the proportions of `flat_config`."""

    kind: ClassVar[str] = "flat"
    Config = FlatConfig
    scorings: ClassVar[tuple[str, ...]] = ("exact",)
    window_context: ClassVar[dict[str, int]] = {"exact": 1}

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config)
        self.model = FlatByteTransformer(config)

    @classmethod
    def sized(cls, setting: Setting) -> FlatConfig:
        return flat_config(setting.parameters)

    def nll(self, rows: Tensor) -> tuple[Tensor, int]:
        return self.model.score(rows)

    def positions(self, rows: Tensor) -> int:
        return read_tokens(rows)

    @torch.no_grad()
    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        rows, positions = scored_positions(passages, self.device)
        logits = self.model.logits(padded_rows(passages, self.device)[:, :-1])
        return scores_from_logits(logits[rows, positions - 1][:, _FOLLOWING], passages)

    @torch.no_grad()
    def continuations(self, prompts: list[bytes], config: GenerationConfig) -> Iterator[list[bytes]]:
        rows, sample = prompt_rows(prompts, self), ByteSampler(config, self.device)
        cache = self.model.empty_cache(len(rows), rows.shape[1] + config.max_new_bytes)
        for byte in rows.T:
            logits = self.model.step(byte, cache)
        while True:
            byte = sample(logits)
            yield as_bytes(byte)
            logits = self.model.step(byte, cache)
