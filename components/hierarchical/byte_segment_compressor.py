"""Tokens to codes: segments → pooled vectors → codes. One level of the way up.

Letters: T packed tokens, S packed segments, D width, Q codes a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abstractinator.components.bottlenecks.fsq import FSQConfig
from abstractinator.components.bottlenecks.kinds import QuantizerConfig, quantizer_of
from abstractinator.components.bottlenecks.vector_quantizer import Quantized
from abstractinator.components.hierarchical.entropy_model import EntropyModel, EntropyModelConfig
from abstractinator.components.hierarchical.learned_query_attention import LearnedQueryAttention
from abstractinator.components.hierarchical.segment_parts import with_parts
from abstractinator.components.hierarchical.segmentation import (
    ENTROPY_RULES,
    DistinctSegments,
    SegmentationConfig,
    Segments,
    check_rule,
    distinct_segments,
    segmenter_of,
)
from abstractinator.components.packing import Packing, gather_rows
from abstractinator.components.token_embedding import TokenEmbedding, check_at_least_one
from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import ResidualMLP, RMSNorm


@dataclass(frozen=True)
class CompressorConfig:
    """entropy_model, segmentation, quantizer: see there.

    value_width: numbers for each position of a segment; its vector has `width` of them, position by position.
    layers, mlp_width: residual SwiGLU blocks between pooling and quantizer.
    """

    entropy_model: EntropyModelConfig = field(default_factory=EntropyModelConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    quantizer: QuantizerConfig = field(default_factory=FSQConfig)
    layers: int = 1
    mlp_width: int = 768
    value_width: int = 48

    def __post_init__(self) -> None:
        check_at_least_one(self, "value_width", "mlp_width")
        if self.layers < 0:
            raise ValueError(f"layers must be at least 0, not {self.layers}")

    @property
    def width(self) -> int:
        """D of a segment's vector."""
        return self.segmentation.max_tokens_per_code * self.value_width


@dataclass(frozen=True)
class Encoded:
    """codes: the segments as tokens of the next level, S of them. distinct: the different segments, U of them, in
    training with parts of some.

    quantized: of the distinct segments, U of them, with zeros for special ones; its loss is of squared distances.
    """

    codes: Tokens
    distinct: DistinctSegments
    quantized: Quantized

    @classmethod
    def of(cls, distinct: DistinctSegments, quantized: Quantized, packing: Packing, vocabulary: Vocabulary) -> Encoded:
        """The codes of all segments, from those of the distinct ones. packing, vocabulary: of the codes."""
        each = distinct.of_segment
        vectors = gather_rows(quantized.vectors, each)
        return cls(Tokens(quantized.codes[each], packing, vocabulary, vectors), distinct, quantized)

    @property
    def vectors(self) -> Tensor:
        """(U, D) the quantized vectors of the distinct segments."""
        return self.quantized.vectors


@dataclass(frozen=True)
class Compressed:
    """What a compressor makes of its tokens.

    tokens: those that went in. segments: how they were cut. entropies: (T,) or None where the rule needs
    none. entropy_nll: (T,) −log p of the entropy model, None where it does not learn: without one, once it is
    frozen, and without gradients. encoded: the codes.
    """

    tokens: Tokens
    segments: Segments
    entropies: Tensor | None
    entropy_nll: Tensor | None
    encoded: Encoded

    @property
    def codes(self) -> Tokens:
        """The segments as tokens of the next level."""
        return self.encoded.codes


class ByteSegmentCompressor(nn.Module):
    """Cuts a sequence of tokens, at the ends of words or where they are hard to predict, and turns each segment into Q
    codes.

    A segment's codes depend on its own tokens alone: the same word has the same codes everywhere, as in a
    vocabulary, but one that is learned and has no words outside it. (Pooling states that had seen the text before the
    segment was tried: see notes.md.) Whether the tokens are bytes or the codes of a level below makes no
    difference here.
    """

    frozen: Tensor

    def __init__(self, config: CompressorConfig, vocabulary: Vocabulary, vector_width: int = 0) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.code_vocabulary = Vocabulary(config.quantizer.codebook_size, config.quantizer.codes_per_segment)
        check_rule(config.segmentation.rule, vocabulary)
        longest = config.segmentation.max_tokens_per_code
        self.segmenter = segmenter_of(config.segmentation)
        self.entropy_model = (
            EntropyModel(config.entropy_model, vocabulary, vector_width)
            if config.segmentation.rule in ENTROPY_RULES
            else None
        )
        self.embedding = TokenEmbedding(vocabulary, config.value_width, vector_width=vector_width)
        self.position = nn.Embedding(longest, config.value_width)
        self.pool = LearnedQueryAttention(config.value_width, longest, config.value_width)
        self.length = nn.Embedding(longest + 1, config.width)
        self.blocks = nn.Sequential(*(ResidualMLP(config.width, config.mlp_width) for _ in range(config.layers)))
        self.norm = RMSNorm(config.width)
        self.quantizer = quantizer_of(config.quantizer, config.width, groups=longest)
        self.register_buffer("frozen", torch.tensor(False))
        self.is_frozen = False  # the same, for which no GPU has to be waited for
        self.register_load_state_dict_post_hook(_stay_frozen)

    def forward(self, tokens: Tokens) -> Compressed:
        """tokens: T of them, packed → Compressed."""
        entropies, nll = self.measure(tokens)
        segments = self.segmenter(tokens, entropies)
        return Compressed(tokens, segments, entropies, nll, self.encode(tokens, segments))

    def measure(self, tokens: Tokens) -> tuple[Tensor | None, Tensor | None]:
        """Entropies (T,) and −log p (T,) of the entropy model; None for rules without one, and no −log p where it does
        not learn (see Compressed)."""
        if self.entropy_model is None:
            return None, None
        if self.is_frozen or not torch.is_grad_enabled():
            return self.entropy_model.entropies(tokens), None
        return self.entropy_model(tokens)

    def freeze(self) -> None:
        """Ends the training of entropy model and threshold, for good: boundaries stay where they are."""
        self.is_frozen = True
        self.frozen.fill_(True)
        if self.entropy_model is not None:
            self.entropy_model.requires_grad_(False)
            self.entropy_model.zero_grad(set_to_none=True)  # a gradient left over would still be stepped on

    def encode(self, tokens: Tokens, segments: Segments) -> Encoded:
        """Codes of given segments; each distinct segment is encoded once. Special tokens become special codes.

        In training `distinct` also has parts of segments, behind the others, so that the model learns to code these,
        too (segment_parts.py).
        """
        distinct = distinct_segments(tokens, segments)
        if self.training and torch.is_grad_enabled():
            distinct = with_parts(distinct)
        quantized = self.quantize(distinct.tokens, distinct.segments)
        return Encoded.of(distinct, quantized, segments.packing, self.code_vocabulary)

    def encode_each(self, tokens: Tokens, segments: Segments) -> Tensor:
        """(S, Q) the codes of `encode`, for a few segments that need not be compared with each other."""
        first = tokens.ids[segments.first_tokens, :1]
        codes = self.quantizer(self.pooled(tokens, segments)).codes
        return torch.where(
            self.vocabulary.is_special(first), self.code_vocabulary.special_from(self.vocabulary, first), codes
        )

    def quantize(self, tokens: Tokens, segments: Segments) -> Quantized:
        """The codes of S segments, special ones among them, which have zeros as their vectors."""
        first = segments.first_tokens
        special = tokens.special[first]  # (S,)
        plain = (~special).nonzero()[:, 0]
        quantized = self.quantizer(gather_rows(self.pooled(tokens, segments), plain))
        ids = self.code_vocabulary.special_from(self.vocabulary, tokens.ids[first, :1])
        ids = ids.repeat(1, self.code_vocabulary.slots)
        ids[plain] = quantized.codes

        def among_zeros(x: Tensor) -> Tensor:
            return x.new_zeros(len(first), x.shape[1]).index_put((plain,), x)

        lattice = None if quantized.lattice is None else among_zeros(quantized.lattice)
        return Quantized(among_zeros(quantized.vectors), ids, quantized.loss, lattice)

    def pooled(self, tokens: Tokens, segments: Segments) -> Tensor:
        """(S, D) what the quantizer reads: a function of each segment's own tokens."""
        longest = self.position.num_embeddings
        x = self.embedding(tokens) + self.position(segments.offsets.clamp(max=longest - 1))
        x = self.pool(x, segments) + self.length(segments.lengths.clamp(max=longest))
        return self.norm(self.blocks(x))


def _stay_frozen(compressor: ByteSegmentCompressor, _: object) -> None:
    """Once weights are loaded: those that were frozen are so again."""
    compressor.is_frozen = bool(compressor.frozen)
    if compressor.is_frozen:
        compressor.freeze()
