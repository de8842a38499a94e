"""The flat byte transformer with full attention and a KV cache, one position a byte."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.contenders.base import Contender, Setting, prompt_rows, read_tokens, sample_bytes
from benchmarks.flat_transformer import FlatByteTransformer, FlatCache, flat_config


class Flat(Contender):
    """FlatByteTransformer as `flat_config` proportions it. width: the number of parameters, from which all follows."""

    def __init__(self, width: int, setting: Setting) -> None:
        super().__init__()
        self.model = FlatByteTransformer.sized(width)

    @classmethod
    def fit(cls, setting: Setting) -> int:
        flat_config(setting.parameters)  # refuses what cannot be
        return setting.parameters

    def nats(self, rows: Tensor) -> tuple[Tensor, int]:
        return self.model.score(rows)

    def positions(self, rows: Tensor) -> int:
        return read_tokens(rows)

    @torch.no_grad()
    def stream(self, prompts: list[bytes], new_bytes: int, mode: str, seed: int) -> Iterator[int]:
        rows = prompt_rows(prompts, self)
        cache = self.model.empty_cache(len(rows), rows.shape[1] + new_bytes)
        for byte in rows.T:
            logits = self.model.step(byte, cache)
        return self._sample(logits, cache, new_bytes)

    @torch.no_grad()
    def _sample(self, logits: Tensor, cache: FlatCache, new_bytes: int) -> Iterator[int]:
        for _ in range(new_bytes):
            logits = self.model.step(sample_bytes(logits), cache)
            yield len(logits)
