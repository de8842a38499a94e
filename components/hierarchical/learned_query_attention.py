"""Pools each segment into one vector by attention with learned queries, at a cost linear in the tokens.

Letters: T packed tokens, S segments, M queries, D width, V width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abstractinator.components.hierarchical.segmentation import Segments
from abstractinator.components.packing import gather_rows


def segment_softmax(scores: Tensor, of_token: Tensor, segments: int) -> Tensor:
    """Softmax over the tokens of each segment, for each column. scores: (T, M) → (T, M) weights."""
    index = of_token[:, None].expand_as(scores)
    highest = scores.new_full((segments, scores.shape[1]), float("-inf"))
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - highest[of_token]).exp()
    total = torch.zeros_like(highest).index_add(0, of_token, weights)
    return weights / gather_rows(total, of_token)


class LearnedQueryAttention(nn.Module):
    """M learned queries attend to the tokens of a segment; their answers, side by side, are its vector.

    A query's score of a token is query · key(token) plus a learned preference for the token's offset in its
    segment. The preferences begin with query i attending to offset i, so the layer starts as an ordered
    concatenation of the first M tokens, from which reconstruction can learn at once; plain averaging, the
    usual start, forgets the order.

    width: D of the tokens. queries: M, the longest segment whose offsets are distinguished. value_width: V.
    """

    def __init__(self, width: int, queries: int, value_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, value_width) * value_width**-0.5)
        self.to_key_value = nn.Linear(width, 2 * value_width, bias=False)
        self.position_preference = nn.Parameter(6.0 * torch.eye(queries))

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """x: (T, D) → (S, M·V). A segment's vector depends on its own tokens alone."""
        count = len(segments.lengths)
        keys, values = self.to_key_value(x).chunk(2, dim=-1)  # (T, V) each
        offset = segments.offsets.clamp(max=len(self.position_preference) - 1)
        scores = (keys @ self.queries.T.to(keys.dtype)).float() + gather_rows(self.position_preference, offset)
        weights = segment_softmax(scores, segments.of_token, count).to(values.dtype)  # (T, M)
        answers = (weights[:, :, None] * values[:, None, :]).flatten(1)  # (T, M·V)
        return answers.new_zeros(count, answers.shape[1]).index_add(0, segments.of_token, answers)
