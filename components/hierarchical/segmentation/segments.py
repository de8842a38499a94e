"""A sequence of tokens that is cut into segments.

Letters: T packed tokens, S packed segments, U distinct segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abstractinator.components.packing import Packing, gather_rows
from abstractinator.components.token_hash import mix, token_hash
from abstractinator.components.tokens import Tokens


@dataclass(frozen=True)
class Segments:
    """A packed sequence of tokens cut into segments.

    packing: of the segments, (S,) in all. of_token: (T,) segment of each token. offsets: (T,) of each
    token in its segment. lengths: (S,). context: (T,) the segment that token t was expected to belong to
    before it was seen; it differs from `of_token` where a special token begins a segment unforeseen, and in the
    second part of one that was cut (segment_parts.py).
    """

    packing: Packing
    of_token: Tensor
    offsets: Tensor
    lengths: Tensor
    context: Tensor

    @property
    def first_tokens(self) -> Tensor:
        """(S,) the packed index of each segment's first token."""
        return self.lengths.cumsum(0) - self.lengths


@dataclass(frozen=True)
class DistinctSegments:
    """The different segments of a sequence, U of them, each once: what depends on a segment alone is computed here.

    tokens, segments: the distinct segments, one a row, and in training parts of some behind them (segment_parts.py).
    counts: (U,) how often each occurs. of_segment: (S,) which of them each segment is. hashes: (U,) ascending, of those
    that are no parts: equal segments have equal ones.
    """

    tokens: Tokens
    segments: Segments
    counts: Tensor
    of_segment: Tensor
    hashes: Tensor


def one_segment_a_row(tokens: Tokens) -> Segments:
    """Segments where every (non-empty) row of the tokens is one segment."""
    packing = tokens.packing
    each = Packing.from_lengths(torch.ones_like(packing.lengths))
    return Segments(each, packing.rows, packing.positions, packing.lengths, packing.rows)


def take_segments(tokens: Tokens, segments: Segments, index: Tensor) -> tuple[Tokens, Segments]:
    """The tokens of some segments (U,), any of them any number of times, each in a row of its own."""
    packing = Packing.from_lengths(segments.lengths[index])
    source = segments.first_tokens[index][packing.rows] + packing.positions
    vectors = gather_rows(tokens.vectors, source) if tokens.vectors is not None else None
    taken = Tokens(tokens.ids[source], packing, tokens.vocabulary, vectors)
    return taken, one_segment_a_row(taken)


def distinct_segments(tokens: Tokens, segments: Segments) -> DistinctSegments:
    """Finds equal segments by a 64-bit hash of their tokens: two different ones of a million are taken for equal
    with probability 3e-8."""
    token = mix(token_hash(tokens.ids), segments.offsets + 1)
    every = torch.zeros_like(segments.lengths).index_add_(0, segments.of_token, token)
    hashes, of_segment, counts = torch.unique(every, return_inverse=True, return_counts=True)
    index = torch.arange(len(every), device=every.device)
    chosen = torch.zeros_like(counts).scatter_(0, of_segment, index)  # one of the equal ones
    return DistinctSegments(*take_segments(tokens, segments, chosen), counts, of_segment, hashes)
