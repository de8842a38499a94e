"""The parts of the predict path for tokens that come a few at a time: what their `forward` computes at once.

Letters: B rows of the state, R rows that take a step, n tokens a row, C width of a context, D width, D' width of what
comes out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.hierarchical.code_expander import CodeExpander
from abstractinator.components.hierarchical.code_sequence_transformer import CodeSequenceTransformer
from abstractinator.components.hierarchical.entropy_model import EntropyModel, entropy
from abstractinator.components.incremental.folded import FoldedEmbedding
from abstractinator.components.incremental.incremental_transformer import CacheEntries, IncrementalTransformer
from abstractinator.components.incremental.next_tokens import NextTokens


class IncrementalEntropyModel:
    """An EntropyModel with the cache of B rows. lower: see FoldedEmbedding. ahead: see IncrementalTransformer."""

    def __init__(self, model: EntropyModel, lower: VectorQuantizer | None, rows: int, ahead: int) -> None:
        self.embedding, self.head = FoldedEmbedding(model.embedding, lower), model.head
        self.transformer = IncrementalTransformer(model.transformer, rows, ahead)

    def step(self, tokens: NextTokens) -> Tensor:
        """(R, n) entropies, in nats, of the tokens after each of these; equals the model's `forward`."""
        with torch.autocast(tokens.ids.device.type, enabled=False):
            entries = self.transformer.entries(tokens.rows, tokens.positions)
            return entropy(self.head.logits(self.transformer.step(self.embedding(tokens), entries)))


def first_hidden(expander: CodeExpander, context: Tensor, predictor: IncrementalTransformer, rows: Tensor) -> Tensor:
    """`CodeExpander.predict` for the first token of rows (R,), context (R, 1, C) → (R, 1, D')."""
    x = expander.start + expander.from_context(context)
    return predictor.step(x, predictor.entries(rows, torch.zeros_like(rows)[:, None]))


def next_hidden(
    expander: CodeExpander,
    context: Tensor,
    tokens: NextTokens,
    embedding: FoldedEmbedding,
    predictor: IncrementalTransformer,
) -> Tensor:
    """`CodeExpander.predict` for the token after each of these (R, n) → (R, n, D').

    context: (R, n, C) before the segments that the tokens after these belong to. embedding, predictor: the expander's,
    folded; the predictor has the tokens before in its cache.
    """
    x = embedding(tokens) + expander.from_context(context)
    return predictor.step(x, predictor.entries(tokens.rows, tokens.positions + 1))


def first_context(top: CodeSequenceTransformer, transformer: IncrementalTransformer, rows: Tensor) -> Tensor:
    """The context before the first code of rows (R,) → (R, 1, D)."""
    x = top.start.expand(len(rows), 1, -1)
    return transformer.step(x, transformer.entries(rows, torch.zeros_like(rows)[:, None]))


def next_context(
    codes: NextTokens, embedding: FoldedEmbedding, transformer: IncrementalTransformer, after: CacheEntries
) -> Tensor:
    """(R, n, D) the contexts after each of these codes; equals the `forward` of CodeSequenceTransformer.

    embedding, transformer: that model's, folded; the transformer has the codes before in its cache. after: the
    transformer's entries of the positions after the codes'.
    """
    return transformer.step(embedding(codes), after)
