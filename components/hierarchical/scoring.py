"""What a text costs a hierarchy, in nats: on the exact path, and in two parts.

Letters: P passages, C scored bytes of all passages together, S packed segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.passages import first_scored, padded_rows, scored_positions, scores_from_logits
from abstractinator.components.tokens import pack_bytes
from abstractinator.contract.capabilities import Passage, Score


@torch.no_grad()
def next_byte_logits(model: Hierarchy, passages: Sequence[Passage]) -> Tensor:
    """(C, 257) of every scored byte on the predict path: log-softmax gives the exact log p(byte | all before it)."""
    device = next(model.parameters()).device
    tokens = pack_bytes(padded_rows(passages, device))
    hidden, _ = model.predict(tokens, model.compress(tokens))
    rows, positions = scored_positions(passages, device)
    scored = hidden[tokens.packing.offsets[rows] + positions]
    return model.byte_head.slot_logits(scored, positions.new_zeros(len(positions), 0))


def exact_scores(model: Hierarchy, passages: Sequence[Passage]) -> list[Score]:
    """−log p of each continuation on the predict path."""
    return scores_from_logits(next_byte_logits(model, passages), passages)


@torch.no_grad()
def two_part_scores(model: Hierarchy, passages: Sequence[Passage]) -> list[Score]:
    """What it takes to send, codes first, the segments from the one with the first scored byte to the text's end.

    nll = Σ over these highest codes of −log p(code | codes before) + Σ over levels of −log p(tokens of a segment |
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
    rows, positions = scored_positions(passages, device)
    scored = tokens.packing.offsets[rows] + positions
    logits = model.byte_head.slot_logits(hidden[scored], positions.new_zeros(len(positions), 0))

    firsts = torch.tensor([first_scored(passage) for passage in passages], device=device)
    first_code = tokens.packing.offsets + firsts  # (P,) climbs from the first scored byte to its highest code
    for level in compressed:
        first_code = level.segments.of_token[first_code]

    codes = compressed[-1].codes
    code = torch.arange(codes.packing.total, device=device)  # (S,) the highest code of every segment, from the top down
    nll = _sum_from(model.top.nll(contexts[-1], codes), code, codes.packing.rows, first_code)
    for i in reversed(range(len(compressed))):
        level = compressed[i]
        of_segment = model.levels[i].reconstruction_nll(level)[level.encoded.distinct.of_segment]
        nll = nll + _sum_from(of_segment, code, level.segments.packing.rows, first_code)
        code = code[level.segments.of_token]
    exact = scores_from_logits(logits, passages)
    return [Score(n, score.is_greedy) for n, score in zip(nll.tolist(), exact, strict=True)]


def _sum_from(nll: Tensor, code: Tensor, rows: Tensor, first_code: Tensor) -> Tensor:
    """(P,) sums over each row's segments that belong to its highest code `first_code` or a later one."""
    counted = nll.double().masked_fill(code < first_code[rows], 0.0)
    return torch.zeros(len(first_code), dtype=torch.float64, device=nll.device).index_add_(0, rows, counted)
