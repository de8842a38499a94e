"""The model at the top: a causal transformer over the highest codes.

It does two things at once: predicts the next code (for `plan` and for the two-part likelihood) and gives
each segment the context before it (for the predict path).

Letters: S packed codes of all rows, Q slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abstractinator.components.incremental.folded import FoldedEmbedding
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer, Places
from abstractinator.components.token_embedding import TokenEmbedding, check_at_least_one
from abstractinator.components.token_head import DepthHead, targets_of
from abstractinator.components.tokens import Alphabet, NextTokens, Tokens
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

    def __init__(self, config: TopTransformerConfig, alphabet: Alphabet, vector_width: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.width, self.alphabet = width, alphabet
        self.embedding = TokenEmbedding(
            alphabet, width, config.ngram_sizes, config.ngram_rows, config.ngram_width, vector_width
        )
        self.start = nn.Parameter(0.1 * torch.randn(width))
        self.transformer = SlidingWindowTransformer(config.transformer)
        self.head = DepthHead(width, alphabet)

    def forward(self, codes: Tokens) -> Tensor:
        """→ (S, D): vector s is the context before code s, made from the codes before it in its row."""
        x = codes.packing.shift(self.embedding(codes), self.start)
        return self.transformer(x, codes.packing)

    def nats(self, context: Tensor, codes: Tokens) -> Tensor:
        """−log p(code s | codes before it): (S,). BOS is not predicted and counts 0, EOS is."""
        return self.head.nats(context, targets_of(codes))

    def begin(self, transformer: IncrementalTransformer, rows: Tensor) -> Tensor:
        """The context before the first code of rows (R,) → (R, 1, D)."""
        x = self.start.expand(len(rows), 1, -1)
        return transformer.step(x, transformer.places(rows, torch.zeros_like(rows)[:, None]))

    def step(
        self, codes: NextTokens, embedding: FoldedEmbedding, transformer: IncrementalTransformer, after: Places
    ) -> Tensor:
        """(R, n, D) the contexts after each of these codes; equals `forward`.

        embedding, transformer: this model's, folded, the latter with the codes before. after: the transformer's places
        of the positions after the codes'.
        """
        return transformer.step(embedding(codes), after)
