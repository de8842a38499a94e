"""A kind of model that only tests know: it predicts each byte from the one before it. One can only write and score
(`Bigram`), the other can do nothing but train (`Silent`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.sampling import Sampler
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Passage, Piece, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, Phase, Sums
from abstractinator.contract.tokenizer import Tokenizer


@dataclass(frozen=True)
class SilentConfig:
    """width: of the embedding of a byte."""

    kind: str = "silent"
    width: int = 8

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")


@dataclass(frozen=True)
class BigramConfig(SilentConfig):
    kind: str = "bigram"


class Silent(Model):
    """log p(byte | byte before it), of an embedding and a linear layer; two phases with the same loss."""

    kind: ClassVar[str] = "silent"
    Config: ClassVar[type] = SilentConfig
    headline: ClassVar[str] = "bits"
    takes_tokenizer: ClassVar[bool] = True

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        self.embedding = nn.Embedding(self.tokenizer.vocab_size, config.width)
        self.to_logits = nn.Linear(config.width, self.tokenizer.vocab_size)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("first", end=0.5), Phase("second"))

    def nll(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) → the sum of −log p of tokens after the first of a row, and how many they are."""
        targets = ids[:, 1:].flatten()
        logits = self.to_logits(self.embedding(ids[:, :-1])).flatten(0, 1)
        is_text = targets < self.tokenizer.text_size
        return F.cross_entropy(logits[is_text], targets[is_text], reduction="sum"), is_text.sum()

    def forward(self, batch: Batch, phase: str) -> Losses:
        total, count = self.nll(batch.ids)
        return Losses(total, count, {f"nats_{phase}": Mean(total.detach(), count)})

    def after_backward(self, losses: Losses, *, done: float, first: bool) -> None:
        self.batches += 1

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        total, count = self.nll(batch.ids)
        return {"bytes": batch.bytes, "nats": float(total), "count": int(count)}

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        return {"bits": Metric(float(sums["nats"]) / math.log(2) / float(sums["count"]), "bits per byte")}


class Bigram(Silent):
    kind: ClassVar[str] = "bigram"
    Config: ClassVar[type] = BigramConfig
    takes_tokenizer: ClassVar[bool] = False
    scorings: ClassVar[tuple[str, ...]] = ("exact",)
    window_context: ClassVar[dict[str, int]] = {"exact": 1}
    modes: ClassVar[tuple[str, ...]] = ("bytes",)
    sample_modes: ClassVar[tuple[str, ...]] = ("bytes",)
    harness_mode: ClassVar[str] = "bytes"

    @torch.no_grad()
    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        return [self._score(passage) for passage in passages]

    @torch.no_grad()
    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        sampler = Sampler(config, self.device)
        last = torch.tensor([prompt[-1] for prompt in prompts], device=self.device)
        for _ in range(config.max_new_bytes):
            last = sampler(self.to_logits(self.embedding(last))[:, : ByteTokenizer.text_size])
            yield from (Piece(index, bytes([byte])) for index, byte in enumerate(last.tolist()))

    def _score(self, passage: Passage) -> Score:
        before = [ByteTokenizer.BOS, *passage.context, *passage.continuation][-len(passage.continuation) - 1 : -1]
        logits = self.to_logits(self.embedding(torch.tensor(before, device=self.device)))
        targets = torch.tensor(list(passage.continuation), device=self.device)
        nll = F.cross_entropy(logits, targets, reduction="sum")
        return Score(float(nll), bool((logits.argmax(-1) == targets).all()))
