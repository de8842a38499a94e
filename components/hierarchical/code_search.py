"""Codes next to the encoder's from which the expander reconstructs a segment, where it does not from the encoder's own.

The encoder finds a segment's codes in one pass and is sometimes a step off: the right codes lie next to its own. Since
decoding is cheap, codes are verified by decoding, and a segment that is decoded wrong is coded again, by a descent over
neighbouring codes. Speech coders call this analysis by synthesis (Atal & Remde 1982). The result is still a function of
the segment alone.

Letters: S segments, D width, Q codes a segment, M neighbours of a segment's codes, W segments that are searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.hierarchical.code_expander import CodeExpander
from abstractinator.components.hierarchical.segmentation import Segments, take_segments
from abstractinator.components.tokens import Tokens

_ROUNDS = 4  # almost all codes that can be found are found by changing this number of values
# Nats of a segment given its codes. Of those above, the search restores one in six in text like that of the training,
# and one in fifty in random bytes.
_FARTHEST = 8.0
_CHUNK_LOGITS = 1 << 24  # logits that are made at once


@torch.no_grad()
def search_codes(
    codes: Tensor,
    vectors: Tensor,
    tokens: Tokens,
    segments: Segments,
    quantizer: VectorQuantizer,
    expander: CodeExpander,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (S, Q) of plain segments, and their vectors (S, D) → the same with what could be repaired repaired, and
    (S,) whether each segment is still decoded wrong.

    Only segments that are improbable by at most _FARTHEST nats are searched. Gradients end here.
    """
    nll, errors = expander.verify(vectors, tokens, segments)
    is_wrong = errors > 0
    near = (is_wrong & (nll <= _FARTHEST)).nonzero()[:, 0]
    codes, vectors = codes.clone(), vectors.clone()
    logits = quantizer.neighbours(codes[:1]).shape[1] * expander.longest * expander.head.classes
    for part in near.split(max(1, _CHUNK_LOGITS // logits)):
        found, right = _descend(codes[part], *take_segments(tokens, segments, part), quantizer, expander)
        repaired = part[right]
        codes[repaired] = found[right]
        vectors[repaired] = quantizer.decode(codes[repaired]).to(vectors.dtype)
        is_wrong[repaired] = False
    return codes, vectors, is_wrong


def _descend(
    codes: Tensor, tokens: Tokens, segments: Segments, quantizer: VectorQuantizer, expander: CodeExpander
) -> tuple[Tensor, Tensor]:
    """From codes (W, Q), each round to the neighbour from which the segment is most probable, until it is reconstructed
    or gets no more probable → the codes (W, Q), and whether the segment is reconstructed from them (W,)."""
    codes, right = codes.clone(), torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    index = torch.arange(len(codes), device=codes.device)  # (W',) still searched
    last = torch.full_like(index, float("inf"), dtype=torch.float32)  # (W',) its nll so far
    for _ in range(_ROUNDS):
        neighbours = quantizer.neighbours(codes[index])  # (W', M, Q)
        count = neighbours.shape[1]
        repeated = take_segments(tokens, segments, index.repeat_interleave(count))
        vectors = quantizer.decode(neighbours.flatten(0, 1))
        nll, errors = (each.view(-1, count) for each in expander.verify(vectors, *repeated))
        is_restored = (errors == 0).any(1)
        least, best = nll.masked_fill((errors > 0) & is_restored[:, None], float("inf")).min(1)
        codes[index] = neighbours[torch.arange(len(index), device=index.device), best]
        right[index[is_restored]] = True
        improves = ~is_restored & (least < last)
        index, last = index[improves], least[improves]
        if not len(index):
            break
    return codes, right
