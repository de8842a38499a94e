"""Codes next to the encoder's from which the expander gives a segment back, where the encoder's own do not.

The encoder finds a segment's codes in one look and is sometimes a step off: the right codes lie next to its own. As
decoding is cheap, it is asked: what does not come back is coded again, by a descent over neighbouring codes. Speech
coders call this analysis by synthesis (Atal & Remde 1982). The result is still a function of the segment alone.

Letters: S segments, D width, Q codes a segment, M neighbours of a segment's codes, W segments that are searched.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from components.code_expander import CodeExpander
from components.segmentation import Segments, take_segments
from components.token_hash import token_hash
from components.tokens import Tokens
from components.vector_quantizer import VectorQuantizer

_ROUNDS = 4  # almost all that is found at all is found by changing so many values
_BEAM = 4  # codes from which each round goes on
_AT_ONCE = 1 << 24  # logits that are made at once


@torch.no_grad()
def search_codes(
    codes: Tensor,
    vectors: Tensor,
    tokens: Tokens,
    segments: Segments,
    quantizer: VectorQuantizer,
    expander: CodeExpander,
) -> tuple[Tensor, Tensor]:
    """Codes (S, Q) of plain segments, and their vectors (S, D) → the same with what could be mended mended.

    Only segments that come back about half right are searched: farther off there is little to be found. Gradients end
    here.
    """
    errors = expander.errors(vectors, tokens, segments)
    wrong = ((errors > 0) & (2 * errors <= segments.lengths + 1)).nonzero()[:, 0]
    if not len(wrong):
        return codes, vectors
    codes, vectors = codes.clone(), vectors.clone()
    logits = _BEAM * quantizer.neighbours(codes[:1]).shape[1] * expander.longest * expander.head.classes
    for part in wrong.split(max(1, _AT_ONCE // logits)):
        found, right = _descend(codes[part], *take_segments(tokens, segments, part), quantizer, expander)
        mended = part[right]
        codes[mended] = found[right]
        vectors[mended] = quantizer.decode(codes[mended]).to(vectors.dtype)
    return codes, vectors


def _descend(
    codes: Tensor, tokens: Tokens, segments: Segments, quantizer: VectorQuantizer, expander: CodeExpander
) -> tuple[Tensor, Tensor]:
    """From codes (W, Q), each round to the _BEAM neighbours from which the segment is most probable, till it comes back
    from one → the codes (W, Q), and whether the segment comes back from them (W,)."""
    codes, right = codes.clone(), torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    index, beam = torch.arange(len(codes), device=codes.device), codes[:, None]  # (W',) searched, (W', B, Q) from where
    for _ in range(_ROUNDS):
        neighbours = quantizer.neighbours(beam.flatten(0, 1)).view(len(index), -1, codes.shape[1])  # (W', B·M, Q)
        count = neighbours.shape[1]
        repeated = take_segments(tokens, segments, index.repeat_interleave(count))
        vectors = quantizer.decode(neighbours.flatten(0, 1))
        nats, errors = (each.view(-1, count) for each in expander.verdict(vectors, *repeated))
        comes_back = (errors == 0).any(1)
        best = nats.masked_fill(errors > 0, float("inf")).argmin(1)[comes_back]
        codes[index[comes_back]], right[index[comes_back]] = neighbours[comes_back, best], True
        index, neighbours, nats = index[~comes_back], neighbours[~comes_back], nats[~comes_back]
        if not len(index):
            break
        chosen = _different(neighbours, nats).topk(min(_BEAM, count), largest=False).indices
        beam = neighbours.gather(1, chosen[:, :, None].expand(-1, -1, codes.shape[1]))
    return codes, right


def _different(codes: Tensor, nats: Tensor) -> Tensor:
    """Nats (W, N) of codes (W, N, Q), infinite for all but one of equal ones, which are reached on several ways."""
    ordered, place = token_hash(codes).sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return nats.masked_fill(torch.zeros_like(again).scatter(1, place, again), float("inf"))
