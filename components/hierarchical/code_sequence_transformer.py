"""The model at the top: a causal transformer over the highest codes.

It does two things at once: predicts the next code (for `plan` and for the two-part likelihood) and gives
each segment the context before it (for the predict path).

Letters: S packed codes of all rows, Q slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abstractinator.components.token_embedding import TokenEmbedding, check_at_least_one
from abstractinator.components.token_head import DepthHead, targets_of
from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig


@dataclass(frozen=True)
class TopTransformerConfig:
    """transformer: its size, its window counted in codes. ngram_*: see TokenEmbedding; n = 1 is a whole code."""

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=256, layers=2, heads=4, window=128, mlp_width=768)
    )
    ngram_sizes: tuple[int, ...] = (1, 2)
    ngram_rows: int = 8_192
    ngram_width: int = 64

    def __post_init__(self) -> None:
        check_at_least_one(self, "ngram_sizes", "ngram_rows", "ngram_width")


class CodeSequenceTransformer(nn.Module):
    """Context before each code, and the distribution of each code given those before it."""

    def __init__(self, config: TopTransformerConfig, vocabulary: Vocabulary, vector_width: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.width, self.vocabulary = width, vocabulary
        self.embedding = TokenEmbedding(
            vocabulary, width, config.ngram_sizes, config.ngram_rows, config.ngram_width, vector_width
        )
        self.start = nn.Parameter(0.1 * torch.randn(width))
        self.transformer = SlidingWindowTransformer(config.transformer)
        self.head = DepthHead(width, vocabulary)

    def forward(self, codes: Tokens) -> Tensor:
        """→ (S, D): vector s is the context before code s, made from the codes before it in its row."""
        x = codes.packing.shift(self.embedding(codes), self.start)
        return self.transformer(x, codes.packing)

    def nll(self, context: Tensor, codes: Tokens) -> Tensor:
        """−log p(code s | codes before it): (S,). BOS is not predicted and counts 0, EOS is."""
        return self.head.nll(context, targets_of(codes))
