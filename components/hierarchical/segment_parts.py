"""Parts of segments: what is coded instead of a segment that no codes reconstruct.

However well codes are learned, some segment is too rare to have any. Its halves are shorter, so as many code bits have
less to say, and theirs again, down to a byte: one of 256, which can always be learned. A part is coded as any segment
is; to be ready for them, a training sees parts of some of its segments, and bytes that its text need not hold.

Above the bytes a part of one token is one of very many, so that splitting makes errors rare there, not impossible.

Letters: T tokens, S segments, U distinct segments.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.hierarchical.segmentation import (
    DistinctSegments,
    Segments,
    one_segment_a_row,
    take_segments,
)
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import Tokens

_CUT = 1 / 8  # of the distinct segments in training
_STRAY = 1 / 32  # as many random tokens, of the distinct segments


def cut_in_two(segments: Segments, chosen: Tensor) -> Segments:
    """The same, where each of the chosen (S,) bool that has two or more tokens is two segments, the first one no
    shorter.

    That a segment is cut may depend on all of its tokens, so `context` keeps to what was known: a token of the second
    part was expected in the whole, whose index the first part has now.
    """
    chosen = chosen & (segments.lengths > 1)
    middle = torch.where(chosen, (segments.lengths + 1) // 2, 0)
    is_second = (segments.offsets >= middle[segments.of_token]) & chosen[segments.of_token]
    before = chosen.cumsum(0) - chosen.long()  # splits before each segment
    lengths = torch.stack([torch.where(chosen, middle, segments.lengths), segments.lengths - middle], dim=1)
    exists = torch.stack([torch.ones_like(chosen), chosen], dim=1)
    per_row = segments.packing.lengths.index_add(0, segments.packing.rows, chosen.long())
    return Segments(
        Packing.from_lengths(per_row),
        segments.of_token + before[segments.of_token] + is_second,
        segments.offsets - torch.where(is_second, middle[segments.of_token], 0),
        lengths[exists],
        segments.context + before[segments.context],
    )


def with_parts(distinct: DistinctSegments) -> DistinctSegments:
    """With parts of some segments behind them, halves and halves of halves, and random tokens where tokens are bytes;
    all these occur 0 times."""
    tokens, lengths = distinct.tokens, distinct.segments.lengths
    chosen = ((torch.rand(len(lengths), device=lengths.device) < _CUT) & (lengths > 1)).nonzero()[:, 0]
    cut, parts = take_segments(tokens, distinct.segments, chosen)
    parts = cut_in_two(parts, torch.ones_like(parts.lengths, dtype=torch.bool))
    parts = cut_in_two(parts, torch.rand(len(parts.lengths), device=lengths.device) < 0.5)

    # A code without the vector behind it is no token, so only bytes can be made up.
    stray = tokens.ids.new_empty(int(_STRAY * len(lengths)) if tokens.vectors is None else 0, tokens.vocabulary.slots)
    stray.random_(tokens.vocabulary.codebook_size)
    vectors = None
    if tokens.vectors is not None and cut.vectors is not None:
        vectors = torch.cat([tokens.vectors, cut.vectors])
    packing = Packing.from_lengths(torch.cat([lengths, parts.lengths, torch.ones_like(stray[:, 0])]))
    more = Tokens(torch.cat([tokens.ids, cut.ids, stray]), packing, tokens.vocabulary, vectors)
    counts = torch.cat([distinct.counts, distinct.counts.new_zeros(len(packing.lengths) - len(lengths))])
    return replace(distinct, tokens=more, segments=one_segment_a_row(more), counts=counts)
