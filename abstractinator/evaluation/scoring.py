"""What a text costs a model, in nats: the core under the harness's adapter.

A model takes part by giving logits over 257 classes, the bytes and the end of the text, at every byte that is
to be scored. Nothing else is asked of it, so that other byte models are measured by the same code.

Letters: P passages, C scored bytes of all passages together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder
from abstractinator.components.tokens import BYTES, pack_bytes

CLASSES = BYTES.codebook_size + 1
"""The bytes and, as the last class, the end of the text."""


@dataclass(frozen=True)
class Passage:
    """Bytes to score and the bytes before them.

    context: given, not scored. continuation: scored, every byte once; not empty. begins: whether the text begins
    with the context, so that BOS stands before it; false for a window out of the middle of a text.
    """

    context: bytes
    continuation: bytes
    begins: bool = True

    @property
    def ids(self) -> list[int]:
        """What the model reads."""
        return [BYTES.bos] * self.begins + [*self.context, *self.continuation]

    @property
    def first_scored(self) -> int:
        """The place of the first scored byte among `ids`."""
        return self.begins + len(self.context)

    def __len__(self) -> int:
        return self.first_scored + len(self.continuation)


@dataclass(frozen=True)
class Score:
    """nats: −log p of the continuation. is_greedy: whether every byte of it is the most probable one at its place."""

    nats: float
    is_greedy: bool


def padded_rows(passages: Sequence[Passage], device: torch.device) -> Tensor:
    """(P, N) ids, PAD at the ends of rows."""
    longest = max(map(len, passages))
    rows = [passage.ids + [BYTES.pad] * (longest - len(passage)) for passage in passages]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def scored_places(passages: Sequence[Passage], device: torch.device) -> tuple[Tensor, Tensor]:
    """(C,) the row of every scored byte and its place there."""
    counts = torch.tensor([len(passage.continuation) for passage in passages])
    rows = torch.repeat_interleave(torch.arange(len(passages)), counts)
    firsts = torch.tensor([passage.first_scored for passage in passages])
    places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows] + firsts[rows]
    return rows.to(device), places.to(device)


def scores_from_logits(logits: Tensor, passages: Sequence[Passage]) -> list[Score]:
    """logits: (C, 257), of every scored byte in the order of the passages → a Score a passage."""
    targets = torch.tensor([byte for passage in passages for byte in passage.continuation], device=logits.device)
    counts = [len(passage.continuation) for passage in passages]
    nats = F.cross_entropy(logits.float(), targets, reduction="none").double().split(counts)
    greedy = (logits.argmax(-1) == targets).split(counts)
    return [Score(float(n.sum()), bool(g.all())) for n, g in zip(nats, greedy, strict=True)]


@torch.no_grad()
def next_byte_logits(model: HierarchicalAutoencoder, passages: Sequence[Passage]) -> Tensor:
    """(C, 257) of every scored byte on the predict path: log-softmax gives the exact log p(byte | all before it)."""
    device = next(model.parameters()).device
    tokens = pack_bytes(padded_rows(passages, device))
    hidden, _ = model.predict(tokens, model.compress(tokens))
    rows, places = scored_places(passages, device)
    scored = hidden[tokens.packing.offsets[rows] + places]
    return model.byte_head.slot_logits(scored, places.new_zeros(len(places), 0))


@torch.no_grad()
def two_part_scores(model: HierarchicalAutoencoder, passages: Sequence[Passage]) -> list[Score]:
    """What it takes to send, codes first, the segments from the one with the first scored byte to the text's end.

    nats = Σ over these highest codes of −log p(code | codes before) + Σ over levels of −log p(tokens of a segment |
    its code). The first of these segments began, in general, before the first scored byte;
    where it begins depends on the context alone. The context's bytes in it are paid for once more, because a code
    stands for a whole segment: so the sum bounds the cost of the continuation from above, and continuations of
    one context, who all pay for the same bytes, can be compared. The text's end is not coded, and codes are the
    encoder's own.

    is_greedy is that of the exact path.
    """
    device = next(model.parameters()).device
    tokens = pack_bytes(padded_rows(passages, device))
    compressed = model.compress(tokens)
    hidden, contexts = model.predict(tokens, compressed)
    rows, places = scored_places(passages, device)
    scored = tokens.packing.offsets[rows] + places
    logits = model.byte_head.slot_logits(hidden[scored], places.new_zeros(len(places), 0))

    firsts = torch.tensor([passage.first_scored for passage in passages], device=device)
    first_code = tokens.packing.offsets + firsts  # (P,) climbs from the first scored byte to its highest code
    for level in compressed:
        first_code = level.segments.of_token[first_code]

    codes = compressed[-1].codes
    code = torch.arange(codes.packing.total, device=device)  # (S,) the highest code of every segment, from the top down
    nats = _sum_from(model.top.nll(contexts[-1], codes), code, codes.packing.rows, first_code)
    for i in reversed(range(len(compressed))):
        level = compressed[i]
        of_segment = model.levels[i].reconstruction_nll(level)[level.encoded.distinct.of_segment]
        nats = nats + _sum_from(of_segment, code, level.segments.packing.rows, first_code)
        code = code[level.segments.of_token]
    exact = scores_from_logits(logits, passages)
    return [Score(n, score.is_greedy) for n, score in zip(nats.tolist(), exact, strict=True)]


def _sum_from(nats: Tensor, code: Tensor, rows: Tensor, first_code: Tensor) -> Tensor:
    """(P,) sums over each row's segments that belong to its highest code `first_code` or a later one."""
    counted = nats.double().masked_fill(code < first_code[rows], 0.0)
    return torch.zeros(len(first_code), dtype=torch.float64, device=nats.device).index_add_(0, rows, counted)
