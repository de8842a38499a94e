"""The small causal language model whose uncertainty decides where segments begin.

It is a part of its own, not the first layers of something larger, so that it can be trained early and
frozen: boundaries that drift make codes drift. It always runs in fp32, because an entropy next to the
threshold must fall on the same side in a batch, alone, and step by step.

Letters: T packed tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn

from abstractinator.components.token_embedding import TokenEmbedding, check_at_least_one
from abstractinator.components.token_head import ParallelHead, nll_of, targets_of
from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig


@dataclass(frozen=True)
class EntropyModelConfig:
    """transformer: its size. ngram_sizes, ngram_rows, ngram_width: see TokenEmbedding."""

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=96, layers=1, heads=3, window=32, mlp_width=256)
    )
    ngram_sizes: tuple[int, ...] = (2, 3, 4, 5)
    ngram_rows: int = 8_192
    ngram_width: int = 64

    def __post_init__(self) -> None:
        check_at_least_one(self, "ngram_sizes", "ngram_rows", "ngram_width")


class EntropyModel(nn.Module):
    """p(token | tokens before it) over a short window, slots taken as independent."""

    def __init__(self, config: EntropyModelConfig, vocabulary: Vocabulary, vector_width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = TokenEmbedding(
            vocabulary,
            config.transformer.width,
            config.ngram_sizes,
            config.ngram_rows,
            config.ngram_width,
            vector_width,
        )
        self.transformer = SlidingWindowTransformer(config.transformer)
        self.head = ParallelHead(config.transformer.width, vocabulary)

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """→ entropies (T,): H_t in nats of token t given those before it, and nll (T,): −log p(token t).

        The entropy of a row's first token is infinite; the nll of what is not predicted is 0 (of that token and
        for BOS).
        """
        logits, first = self._logits(tokens)
        nll = nll_of(logits, targets_of(tokens))
        return entropy(logits).masked_fill(first, float("inf")), nll.masked_fill(first, 0.0)

    @torch.no_grad()
    def entropies(self, tokens: Tokens) -> Tensor:
        """Those of `forward` (T,), alone."""
        logits, first = self._logits(tokens)
        return entropy(logits).masked_fill(first, float("inf"))

    def _logits(self, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Per slot (T, classes), always in fp32; and whether a token is its row's first (T,)."""
        packing = tokens.packing
        with torch.autocast(tokens.ids.device.type, enabled=False):
            vectors = tokens.vectors.detach().float() if tokens.vectors is not None else None
            x = self.embedding(Tokens(tokens.ids, packing, tokens.vocabulary, vectors))
            hidden = self.transformer(x, packing)
            before = packing.shift(hidden, hidden.new_zeros(hidden.shape[1]))
            return self.head.logits(before), packing.positions == 0


@torch.no_grad()
def entropy(logits: list[Tensor]) -> Tensor:
    """Σ over slots of −Σ p log p. logits: per slot (…, classes) → (…) nats, in fp32 and without gradients."""
    with torch.autocast(logits[0].device.type, enabled=False):  # which would take the products in half precision
        log_p = (slot.float().log_softmax(-1) for slot in logits)
        return reduce(torch.add, (-torch.linalg.vecdot(slot.exp(), slot) for slot in log_p))
