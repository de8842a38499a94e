"""The model as it is trained: vectors of texts, the texts from them, and a language model over them.

Letters: B rows of a batch, K texts of a row, M texts, W tokens of the longest text, d embedding width, D memory width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.glae.config import GlaeConfig
from abstractinator.components.glae.decoder import Decoder, Reading
from abstractinator.components.glae.iteration import Recurrence
from abstractinator.components.glae.measures import measure_rows, metrics_of
from abstractinator.components.glae.text_encoder import TextEncoder, joined
from abstractinator.components.glae.texts import Texts, cut_rows
from abstractinator.components.glae.uniformity import (
    attraction,
    largest_coding_rate,
    repulsive_infonce,
    total_coding_rate,
)
from abstractinator.components.sliding_window_attention import SlidingWindowAttention
from abstractinator.components.tokens import Vocabulary
from abstractinator.components.transformer import SwiGLU
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, RowLayout, Sums
from abstractinator.contract.tokenizer import Tokenizer

_WHOLE = 0.2  # share of the training's texts that are not shortened


class GlaeModel(Model):
    """L = -log p(text | vector, text before) - log p(row | vectors before, row before) + uniformity + attraction."""

    kind: ClassVar[str] = "glae"
    Config = GlaeConfig
    headline: ClassVar[str] = "not_exact"
    takes_tokenizer: ClassVar[bool] = True
    config: GlaeConfig

    def __init__(self, config: GlaeConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        vocabulary = Vocabulary(self.tokenizer.text_size)
        self.encoder = TextEncoder(config, self.tokenizer.vocab_size, self.tokenizer.EOS)
        self.recurrence = Recurrence(config.memory_width)
        self.decoder = Decoder(config, vocabulary)
        self.apply(_initialize)

    def layout(self, length: int) -> RowLayout:
        """Each row is a text of its own, of at least two parts of W tokens, so that a batch of one row has texts to
        compare. Raises ValueError for shorter rows."""
        if length < 2 * self.config.window + 2:
            raise ValueError(
                f"sequence_length={length} is too short: uniformity compares at least 2 texts of decoder.window="
                f"{self.config.window} tokens; set sequence_length to {2 * self.config.window + 2} or more"
            )
        return RowLayout(length, documents="separate")

    def forward(self, batch: Batch, phase: str = "all") -> Losses:
        """Each row is cut into texts of W tokens. The language model reads the row; of each text a beginning of random
        length, from nothing to the whole, is encoded and decoded. The texts that uniformity compares are those of the
        micro-batch."""
        rows = cut_rows(batch.ids, self.config.window, self.tokenizer)
        memories = self.encoder.memory(rows)  # (B·K, D)
        texts = self.shortened(rows.of(rows.lengths > 0))
        carrier, memory = self.encoder.carrier(texts), self.encoder.memory(texts)
        reconstruction, language = self.decoder(
            self.decoding(texts, self.disturbed(carrier), memory), self.language(rows, memories, len(batch.ids))
        )
        (nll, right), (row_nll, _) = reconstruction, language
        weight = nll.new_tensor(float(len(nll) + len(row_nll)))
        spread, spread_part = self.uniformity(joined(carrier, memory))
        drawn, drawn_part = self.attraction(rows, memories, len(batch.ids))
        config = self.config
        contrast = config.uniformity_weight * spread + config.attraction_weight * drawn
        total = nll.sum() + config.language_weight * row_nll.sum() + weight * contrast
        parts = {
            "reconstruction_bits_per_token": _mean(nll.detach().sum() / math.log(2), len(nll)),
            "bits_per_byte_exact": _mean(row_nll.detach().sum() / math.log(2), batch.bytes),
            "right_tokens": _mean(right.float().sum(), len(nll)),
        }
        return Losses(total, weight, parts | spread_part | drawn_part)

    def shortened(self, texts: Texts) -> Texts:
        """In training the beginning of each text, of a random length between 0 and its own; otherwise the whole."""
        if not self.training:
            return texts
        drawn = torch.rand(len(texts.lengths)).to(texts.lengths.device) / (1 - _WHOLE)
        return texts.beginnings((drawn * (texts.lengths + 1)).long())

    def disturbed(self, carrier: Tensor) -> Tensor:
        """With noise in training, so that rounding does no harm in storage."""
        if not self.training or not self.config.noise:
            return carrier
        return carrier + self.config.noise * torch.randn(carrier.shape).to(carrier.device)

    def decoding(self, texts: Texts, carrier: Tensor, memory: Tensor) -> Reading:
        """The texts, each to be decoded from its vector."""
        added = self.decoder.of_carrier(carrier) + self.decoder.of_memory(memory)[:, None]
        return self.decoder.reading(texts.ids, texts.lengths, added, torch.ones_like(texts.lengths, dtype=torch.bool))

    def language(self, rows: Texts, memories: Tensor, count: int, *, ends: bool = True) -> Reading:
        """`count` rows, cut into texts: each position is to be predicted from the vector of the texts before its own,
        and the tokens before it. ends: whether ends are predicted, too.

        A full row was in general cut from a longer text, so that no end is predicted behind it.
        """
        states = self.recurrence(memories.view(count, -1, memories.shape[1]))  # (B, K, D)
        before = F.pad(states, (0, 0, 1, 0))[:, :-1]
        added = self.decoder.of_memory(before).repeat_interleave(self.config.window, dim=1)
        lengths = rows.lengths.view(count, -1).sum(1)
        ids = rows.ids.view(count, -1)
        return self.decoder.reading(ids, lengths, added, (lengths < ids.shape[1]) & ends)

    def uniformity(self, vectors: Tensor) -> tuple[Tensor, dict[str, Mean]]:
        """What is minimised, and what is reported; both 0 where a micro-batch has but one text."""
        count, config = len(vectors), self.config
        if count < 2:
            return vectors.new_zeros(()), {"uniformity": _mean(vectors.new_zeros(()), 0)}
        if config.uniformity == "infonce":
            spread = repulsive_infonce(vectors, config.temperature)
            return spread, {"uniformity": _mean(spread.detach(), 1)}
        largest = largest_coding_rate(count, vectors.shape[1], config.tcr_epsilon)
        share = total_coding_rate(vectors, config.tcr_epsilon) / largest
        return -share, {"uniformity": _mean(share.detach(), 1)}

    def attraction(self, rows: Texts, memories: Tensor, count: int) -> tuple[Tensor, dict[str, Mean]]:
        """Of the memories (B·K, D) of neighbouring texts in the B rows, both of at least half the longest length."""
        long = (rows.lengths >= self.config.window // 2).view(count, -1)
        each = torch.arange(long.numel(), device=long.device).view(long.shape)
        pairs = long[:, 1:] & long[:, :-1]
        left, right = each[:, :-1][pairs], each[:, 1:][pairs]
        neighbours = torch.zeros(long.numel(), long.numel(), dtype=torch.bool, device=long.device)
        neighbours[left, right] = neighbours[right, left] = True
        kept = long.flatten()
        cost = attraction(memories[kept], neighbours[kept][:, kept], self.config.temperature)
        return cost, {"attraction": _mean(cost.detach(), 1)}

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        rows = cut_rows(batch.ids, self.config.window, self.tokenizer)
        language = self.language(rows, self.encoder.memory(rows), len(batch.ids))
        return measure_rows(self.config, self.encoder, self.decoder, language, batch, self.tokenizer)

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        return metrics_of(self.config, sums)


def _mean(total: Tensor, weight: float) -> Mean:
    return Mean(total, total.new_tensor(float(weight)))


def _initialize(module: nn.Module) -> None:
    """Matrices at 1/√fan-in, embeddings small, so that all parts of a sum begin alike; what blocks add, at zero."""
    if isinstance(module, SwiGLU | SlidingWindowAttention):
        nn.init.zeros_(module.to_out.weight)  # after its own turn, as children come first
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        nn.init.normal_(module.weight, std=0.1)
        if isinstance(module, nn.EmbeddingBag) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
