"""The modules' functions in fewer operations, for steps of a token or a few, where each operation costs more than its
arithmetic: norms are folded into the matrices behind them, and matrices lie as a vector times a matrix reads them.

A folded function computes in fp32 with the weights as they were when it was made; it equals its module but for
rounding, and has no gradients.

Letters: T tokens, D width, Q slots, K codes in a codebook; R rows with n tokens each.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.incremental.next_tokens import NextTokens
from abstractinator.components.token_embedding import TokenEmbedding
from abstractinator.components.token_head import DepthHead
from abstractinator.components.transformer import ResidualMLP, RMSNorm


class FoldedNorm:
    """RMSNorm without its gain: `matrix` is what takes the gain in."""

    @torch.no_grad()
    def __init__(self, norm: RMSNorm) -> None:
        gain = norm.gain.float()
        self.gain = gain * len(gain) ** 0.5
        self.floor = gain.new_tensor((len(gain) * norm.epsilon) ** 0.5)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight (O, D) of a linear layer behind the norm → (D, O) for a unit vector times it."""
        return transposed(weight * self.gain)

    def unit(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D) of length 1, where x is not about 0."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D), what the module gives."""
        return self.unit(x) * self.gain


class FoldedMLP:
    """ResidualMLP."""

    @torch.no_grad()
    def __init__(self, block: ResidualMLP) -> None:
        self.norm = FoldedNorm(block.norm)
        self.to_hidden = self.norm.matrix(block.mlp.to_hidden.weight)
        self.to_out = transposed(block.mlp.to_out.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, D) → (T, D)."""
        gate, value = (self.norm.unit(x) @ self.to_hidden).chunk(2, dim=-1)
        return torch.addmm(x, F.silu(gate).mul_(value), self.to_out)


class FoldedEmbedding:
    """TokenEmbedding of bytes or, with the quantizer that made them, of codes and the vectors behind them.

    A vector behind codes is a sum over slots (VectorQuantizer.part), so it is folded into the slots' tables; special
    codes have none. The table of n-grams is the module's own.
    """

    @torch.no_grad()
    def __init__(self, embedding: TokenEmbedding, quantizer: VectorQuantizer | None = None) -> None:
        self.embedding = embedding
        tables = torch.stack([cast(nn.Embedding, slot).weight.float() for slot in embedding.slots])  # (Q, K + 3, D)
        if quantizer is not None:
            for slot, table in enumerate(tables):
                table[: embedding.vocabulary.codebook_size] += embedding.from_vectors(quantizer.part(slot))
        self.table = tables.flatten(0, 1)
        self.first = torch.arange(len(tables), device=tables.device) * tables.shape[1]  # row of each slot
        if embedding.ngram_sizes:
            self.from_ngrams = transposed(embedding.from_ngrams.weight)
        if embedding.match:
            self.guesses = embedding.match.guesses.weight.float() @ embedding.match.from_guesses.weight.float().t()

    def __call__(self, tokens: NextTokens) -> Tensor:
        """→ (R, n, D)."""
        x = F.embedding(tokens.ids.flatten(0, 1) + self.first, self.table).sum(1)
        if self.embedding.ngram_sizes:
            rows = self.embedding.ngram_rows_of(tokens.ngrams.flatten(0, 1))
            x = torch.addmm(x, F.embedding(rows, self.embedding.ngrams.weight).sum(1), self.from_ngrams)
        if self.embedding.match:
            assert tokens.matches is not None, "matches are searched where tokens are appended to a memory"
            x = x + F.embedding(self.embedding.match.rows_of(tokens.matches.flatten(0, 1)), self.guesses).sum(1)
        return x.view(*tokens.positions.shape, x.shape[-1])


class FoldedDepthHead:
    """DepthHead."""

    @torch.no_grad()
    def __init__(self, head: DepthHead) -> None:
        self.earlier = [table.weight.detach().float() for table in head.earlier]
        self.mlps = [FoldedMLP(cast(ResidualMLP, block[0])) for block in head.blocks]
        self.norms = [FoldedNorm(cast(RMSNorm, block[1])) for block in head.blocks]
        first, *others = (layer.weight for layer in head.to_logits)
        matrices = (norm.matrix(weight) for norm, weight in zip(self.norms, others, strict=True))
        self.to_logits = [transposed(first), *matrices]

    def slot_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Logits of slot q; hidden (T, D), earlier (T, q) codes → (T, K + 1) or, for q > 0, (T, K)."""
        slot = earlier.shape[-1]
        if not slot:
            return hidden @ self.to_logits[0]
        for table, codes in zip(self.earlier, earlier.unbind(-1), strict=False):  # of the earlier slots
            hidden = hidden + F.embedding(codes, table)
        return self.norms[slot - 1].unit(self.mlps[slot - 1](hidden)) @ self.to_logits[slot]


def transposed(weight: Tensor) -> Tensor:
    """The weight (O, D) of a linear layer → (D, O) fp32, row by row: read once, in order, for one vector."""
    return weight.detach().float().t().contiguous()
