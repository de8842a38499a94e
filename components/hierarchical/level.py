"""One level: a compressor, and the expander that undoes it.

Letters: T packed tokens, S packed segments, U distinct segments, L longest segment, Q slots of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abstractinator.components.hierarchical.byte_segment_compressor import (
    ByteSegmentCompressor,
    Compressed,
    CompressorConfig,
)
from abstractinator.components.hierarchical.code_expander import CodeExpander, ExpanderConfig
from abstractinator.components.hierarchical.repair import repair_codes
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import Tokens, Vocabulary


@dataclass(frozen=True)
class LevelConfig:
    """One level, up and down."""

    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    expander: ExpanderConfig = field(default_factory=ExpanderConfig)


class Level(nn.Module):
    """Tokens to codes and back. vocabulary: of the tokens. lower_vector_width: of their vectors, 0 for bytes.
    context_width: of the contexts that the level above, or the top, gives."""

    compressor: ByteSegmentCompressor
    expander: CodeExpander

    def __init__(
        self, config: LevelConfig, vocabulary: Vocabulary, lower_vector_width: int, context_width: int
    ) -> None:
        super().__init__()
        self.compressor = ByteSegmentCompressor(config.compressor, vocabulary, lower_vector_width)
        self.expander = CodeExpander(
            config.expander,
            vocabulary,
            vector_width=config.compressor.width,
            context_width=context_width,
            longest=config.compressor.segmentation.max_tokens_per_code,
            lower_vector_width=lower_vector_width,
        )

    def compress(self, tokens: Tokens, *, repair: bool = False) -> Compressed:
        """Tokens → codes. repair: codes are verified by decoding; a segment that is decoded wrongly gets other codes,
        or is split (see repair.py). Raises ValueError for a repair in training mode, in which codebooks move."""
        if repair and self.training:
            raise ValueError("codes are repaired by a model that does not learn: call model.eval() before")
        compressed = self.compressor(tokens)
        return repair_codes(compressed, self.compressor, self.expander) if repair else compressed

    def reconstruction_nll(self, compressed: Compressed) -> Tensor:
        """(U,) −log p(tokens | code) of each distinct segment, in nats."""
        encoded = compressed.encoded
        return self.expander.reconstruction_nll(encoded.vectors, encoded.distinct.tokens, encoded.distinct.segments)

    @torch.no_grad()
    def decompress(self, codes: Tokens) -> tuple[Tokens, Tensor]:
        """Codes, of which only the ids are read → their most probable tokens (T), and the code of each (T,).

        Raises ValueError for an id outside the codebook that is no special code either.
        """
        compressor, special = self.compressor, codes.special
        _check_ids(codes)
        vectors = compressor.quantizer.decode(codes.ids.clamp(max=codes.vocabulary.codebook_size - 1))
        ids, lengths = self.expander.expand(vectors)
        ids[special, 0] = compressor.vocabulary.special_from(codes.vocabulary, codes.ids[special, :1])
        lengths = lengths.masked_fill(special, 1)

        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (S, L)
        per_row = torch.zeros_like(codes.packing.lengths).index_add_(0, codes.packing.rows, lengths)
        return Tokens(ids[inside], Packing.from_lengths(per_row), compressor.vocabulary), inside.nonzero()[:, 0]


def _check_ids(codes: Tokens) -> None:
    """A code is Q ids below the codebook's size, or one special number in all its slots."""
    size, ids = codes.vocabulary.codebook_size, codes.ids
    is_special = (ids[:, :1] >= size) & (ids[:, :1] <= codes.vocabulary.eos) & (ids == ids[:, :1]).all(1, keepdim=True)
    wrong = ids[((ids < 0) | (ids >= size)) & ~is_special]
    if len(wrong):
        raise ValueError(f"code id {int(wrong[0])} does not exist: the codebook has {size} codes, 0 to {size - 1}")
