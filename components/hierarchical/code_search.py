"""Codes next to the encoder's from which the expander gives a segment back, where the encoder's own do not.

The encoder finds a segment's codes in one look and is sometimes a step off: the right codes lie next to its own. As
decoding is cheap, it is asked: what does not come back is coded again, by a descent over neighbouring codes. Speech
coders call this analysis by synthesis (Atal & Remde 1982). The result is still a function of the segment alone.

Letters: S segments, D width, Q codes a segment, M neighbours of a segment's codes, W segments that are searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.hierarchical.code_expander import CodeExpander
from abstractinator.components.hierarchical.segmentation import Segments, take_segments
from abstractinator.components.tokens import Tokens

_ROUNDS = 4  # almost all that is found at all is found by changing so many values
_CHUNK_LOGITS = 1 << 24  # logits that are made at once


@torch.no_grad()
def search_codes(
    codes: Tensor,
    vectors: Tensor,
    tokens: Tokens,
    segments: Segments,
    quantizer: VectorQuantizer,
    expander: CodeExpander,
) -> tuple[Tensor, Tensor]:
    """Codes (S, Q) of plain segments, and their vectors (S, D) → the same with what could be repaired repaired.

    Only segments that come back about half right are searched: farther off there is little to be found. Gradients end
    here.
    """
    errors = expander.errors(vectors, tokens, segments)
    wrong = ((errors > 0) & (2 * errors <= segments.lengths + 1)).nonzero()[:, 0]
    if not len(wrong):
        return codes, vectors
    codes, vectors = codes.clone(), vectors.clone()
    logits = quantizer.neighbours(codes[:1]).shape[1] * expander.longest * expander.head.classes
    for part in wrong.split(max(1, _CHUNK_LOGITS // logits)):
        found, right = _descend(codes[part], *take_segments(tokens, segments, part), quantizer, expander)
        repaired = part[right]
        codes[repaired] = found[right]
        vectors[repaired] = quantizer.decode(codes[repaired]).to(vectors.dtype)
    return codes, vectors


def _descend(
    codes: Tensor, tokens: Tokens, segments: Segments, quantizer: VectorQuantizer, expander: CodeExpander
) -> tuple[Tensor, Tensor]:
    """From codes (W, Q), each round to the neighbour from which the segment is most probable, till it comes back or
    gets no more probable → the codes (W, Q), and whether the segment comes back from them (W,)."""
    codes, right = codes.clone(), torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    index = torch.arange(len(codes), device=codes.device)  # (W',) still searched
    last = torch.full_like(index, float("inf"), dtype=torch.float32)  # (W',) nats so far
    for _ in range(_ROUNDS):
        neighbours = quantizer.neighbours(codes[index])  # (W', M, Q)
        count = neighbours.shape[1]
        repeated = take_segments(tokens, segments, index.repeat_interleave(count))
        vectors = quantizer.decode(neighbours.flatten(0, 1))
        nats, errors = (each.view(-1, count) for each in expander.verdict(vectors, *repeated))
        is_restored = (errors == 0).any(1)
        least, best = nats.masked_fill((errors > 0) & is_restored[:, None], float("inf")).min(1)
        codes[index] = neighbours[torch.arange(len(index), device=index.device), best]
        right[index[is_restored]] = True
        going = ~is_restored & (least < last)
        index, last = index[going], least[going]
        if not len(index):
            break
    return codes, right
