"""Codes that are verified by decoding, so that reconstruction is lossless.

The encoder finds a segment's codes in one pass and is sometimes a step off. What the expander decodes wrongly is coded
again: first by a search over neighbouring codes (code_search.py), then by splitting the segment into halves, and these
again, down to single tokens. The result depends on the segment alone, and each distinct segment is coded once.

Letters: S packed segments, U distinct segments.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import Quantized
from abstractinator.components.hierarchical.byte_segment_compressor import ByteSegmentCompressor, Compressed, Encoded
from abstractinator.components.hierarchical.code_expander import CodeExpander
from abstractinator.components.hierarchical.code_search import search_codes
from abstractinator.components.hierarchical.segment_parts import cut_in_two
from abstractinator.components.hierarchical.segmentation import Segments, distinct_segments, take_segments
from abstractinator.components.tokens import Tokens


@torch.no_grad()
def repair_codes(compressed: Compressed, compressor: ByteSegmentCompressor, expander: CodeExpander) -> Compressed:
    """The same tokens with codes from which `expander` decodes them. A single token that no code restores stays wrong,
    which happens only after a very short training."""
    tokens, segments, distinct = compressed.tokens, compressed.segments, compressed.encoded.distinct
    coded, is_wrong = verified(compressed.encoded.quantized, distinct.tokens, distinct.segments, compressor, expander)
    while True:
        wrong = is_wrong[distinct.of_segment] & (segments.lengths > 1)
        if not wrong.any():
            vocabulary = compressed.codes.vocabulary
            encoded = Encoded.of(distinct, coded, segments.packing, vocabulary)
            return replace(compressed, segments=segments, encoded=encoded)
        segments = cut_in_two(segments, wrong)
        before, distinct = distinct, distinct_segments(tokens, segments)
        same = torch.searchsorted(before.hashes, distinct.hashes).clamp(max=len(before.hashes) - 1)
        new = (before.hashes[same] != distinct.hashes).nonzero()[:, 0]
        part = take_segments(distinct.tokens, distinct.segments, new)
        found, found_wrong = verified(compressor.quantize(*part), *part, compressor, expander)
        codes = coded.codes[same].index_put((new,), found.codes)
        coded = replace(coded, codes=codes, vectors=coded.vectors[same].index_put((new,), found.vectors))
        is_wrong = is_wrong[same].index_put((new,), found_wrong)


@torch.no_grad()
def verified(
    quantized: Quantized, tokens: Tokens, segments: Segments, compressor: ByteSegmentCompressor, expander: CodeExpander
) -> tuple[Quantized, Tensor]:
    """Codes of U segments → the same with other codes where the search finds some from which a segment is decoded
    right, and (U,) whether each is still decoded wrong."""
    plain = (~tokens.special[segments.first_tokens]).nonzero()[:, 0]
    codes, vectors, is_wrong = search_codes(
        quantized.codes[plain],
        quantized.vectors[plain],
        *take_segments(tokens, segments, plain),
        compressor.quantizer,
        expander,
    )
    better = replace(
        quantized,
        codes=quantized.codes.index_put((plain,), codes),
        vectors=quantized.vectors.index_put((plain,), vectors),
        lattice=None,  # it is that of the first codes
    )
    return better, torch.zeros_like(segments.lengths, dtype=torch.bool).index_put((plain,), is_wrong)
