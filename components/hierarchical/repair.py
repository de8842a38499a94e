"""Codes that are verified by decoding, so that reconstruction is lossless.

The encoder finds a segment's codes in one pass and is sometimes a step off. What the expander decodes wrongly is coded
again: first by a search over neighbouring codes (code_search.py), then by splitting the segment into halves, and these
again, down to single tokens. The result depends on the segment alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.hierarchical.byte_segment_compressor import ByteSegmentCompressor, Compressed, Encoded
from abstractinator.components.hierarchical.code_expander import CodeExpander
from abstractinator.components.hierarchical.code_search import search_codes
from abstractinator.components.hierarchical.segment_parts import cut_in_two
from abstractinator.components.hierarchical.segmentation import take_segments


@torch.no_grad()
def repair_codes(compressed: Compressed, compressor: ByteSegmentCompressor, expander: CodeExpander) -> Compressed:
    """The same tokens with codes from which `expander` decodes them. A single token that no code restores stays wrong,
    which happens only after a very short training."""
    segments, encoded = compressed.segments, compressed.encoded
    while True:
        encoded = _searched(encoded, compressor, expander)
        wrong = _is_wrong(encoded, expander)[encoded.distinct.of_segment] & (segments.lengths > 1)
        if not wrong.any():
            return replace(compressed, segments=segments, encoded=encoded)
        segments = cut_in_two(segments, wrong)
        encoded = compressor.encode(compressed.tokens, segments)


def _is_wrong(encoded: Encoded, expander: CodeExpander) -> Tensor:
    """(U,) whether each distinct segment is decoded with an error."""
    return expander.errors(encoded.vectors, encoded.distinct.tokens, encoded.distinct.segments) > 0


def _searched(encoded: Encoded, compressor: ByteSegmentCompressor, expander: CodeExpander) -> Encoded:
    """With better codes for the distinct segments where the search finds some."""
    distinct, quantized = encoded.distinct, encoded.quantized
    plain = (~distinct.tokens.special[distinct.segments.first_tokens]).nonzero()[:, 0]
    codes, vectors = search_codes(
        quantized.codes[plain],
        quantized.vectors[plain],
        *take_segments(distinct.tokens, distinct.segments, plain),
        compressor.quantizer,
        expander,
    )
    better = replace(
        quantized,
        codes=quantized.codes.index_put((plain,), codes),
        vectors=quantized.vectors.index_put((plain,), vectors),
        lattice=None,  # it is that of the first codes
    )
    return Encoded.of(distinct, better, encoded.codes.packing, encoded.codes.vocabulary)
