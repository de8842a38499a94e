"""Codes back to tokens, one level of the way down; and, for the language model, context to tokens.

Two ways down share a level:

    decompress   given a segment's quantized vector alone, its tokens: all segments and all positions at once
    predict      given the context before a segment and the tokens so far, the next token

Letters: T packed tokens, S packed segments, L longest segment, D width, Q slots, K codes of the lower level.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abstractinator.components.hierarchical.segmentation import Segments
from abstractinator.components.packing import gather_rows
from abstractinator.components.token_embedding import TokenEmbedding, check_at_least_one
from abstractinator.components.token_head import IGNORED, ParallelHead, nll_of
from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import (
    GroupedLinear,
    ResidualMLP,
    RMSNorm,
    SlidingWindowTransformer,
    TransformerConfig,
)


@dataclass(frozen=True)
class ExpanderConfig:
    """Both ways down of one level.

    position_width: P, width of the vector that each position of a segment gets. layers, mlp_width: of the residual
    SwiGLU blocks that make these vectors, side by side, from a quantized vector. predictor: the transformer over
    tokens that continues them from context. ngram_*, match_*: see TokenEmbedding, for the predictor.
    """

    layers: int = 1
    mlp_width: int = 768
    position_width: int = 64
    predictor: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=128, layers=1, heads=4, window=32, mlp_width=320)
    )
    ngram_sizes: tuple[int, ...] = (2, 3, 4, 5, 6)
    ngram_rows: int = 65_536
    ngram_width: int = 64
    match_sizes: tuple[int, ...] = (4, 7)
    match_window: int = 1_024
    match_width: int = 32

    def __post_init__(self) -> None:
        check_at_least_one(self, "position_width", "mlp_width", "ngram_sizes", "ngram_rows", "ngram_width")
        check_at_least_one(self, "match_sizes", "match_window", "match_width")
        if self.layers < 0:
            raise ValueError(f"layers must be at least 0, not {self.layers}")


class CodeExpander(nn.Module):
    """Reads quantized vectors, never a table of code indices, so that reconstruction trains the codes.

    vocabulary: the lower level's tokens. vector_width: of the quantized vectors read by `decompress`.
    context_width: of the context vectors read by `predict`. longest: L. lower_vector_width: width of the
    lower tokens' own vectors (0 for bytes).
    """

    def __init__(
        self,
        config: ExpanderConfig,
        vocabulary: Vocabulary,
        vector_width: int,
        context_width: int,
        longest: int,
        lower_vector_width: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.longest = config, vocabulary, longest
        positions_width = longest * config.position_width
        self.from_vector = GroupedLinear(vector_width, positions_width, groups=longest)
        self.blocks = nn.Sequential(*(ResidualMLP(positions_width, config.mlp_width) for _ in range(config.layers)))
        self.position_mlp = ResidualMLP(config.position_width, 2 * config.position_width)
        self.position_norm = RMSNorm(config.position_width)
        self.head = ParallelHead(config.position_width, vocabulary)

        width = config.predictor.width
        self.embedding = TokenEmbedding(
            vocabulary,
            width,
            ngram_sizes=config.ngram_sizes,
            ngram_rows=config.ngram_rows,
            ngram_width=config.ngram_width,
            vector_width=lower_vector_width,
            match_sizes=config.match_sizes,
            match_window=config.match_window,
            match_width=config.match_width,
        )
        self.start = nn.Parameter(0.1 * torch.randn(width))
        self.from_context = nn.Linear(context_width, width, bias=False)
        self.predictor = SlidingWindowTransformer(config.predictor)

    # decompress: quantized vectors → tokens

    def position_vectors(self, vectors: Tensor) -> Tensor:
        """Quantized vectors (S, D) → (S, L, P): a hidden vector for each position."""
        x = self.blocks(self.from_vector(vectors)).view(len(vectors), self.longest, self.config.position_width)
        return self.position_norm(self.position_mlp(x))

    def reconstruction_nll(self, vectors: Tensor, tokens: Tokens, segments: Segments) -> Tensor:
        """−log p(tokens of the segment | its code), its end included: vectors (S, D) of the codes → (S,) nats.

        The end is not coded after the longest possible segment, where it is certain; special segments cost 0.
        """
        index, offsets, targets = self._targets(tokens, segments)
        hidden = gather_rows(self.position_vectors(vectors).flatten(0, 1), index * self.longest + offsets)
        return _summed(self.head.nll(hidden, targets), index, len(vectors))

    @torch.no_grad()
    def verify(self, vectors: Tensor, tokens: Tokens, segments: Segments) -> tuple[Tensor, Tensor]:
        """`reconstruction_nll` (S,) and `errors` (S,) of plain segments, from one pass."""
        index, offsets, targets = self._targets(tokens, segments)
        hidden = self.position_vectors(vectors)
        logits = self.head.logits(hidden.flatten(0, 1))
        chosen = [slot.view(len(vectors), self.longest, slot.shape[-1])[index, offsets] for slot in logits]
        return _summed(nll_of(chosen, targets), index, len(vectors)), self._errors(logits, tokens, segments)

    def _targets(self, tokens: Tokens, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        """Segment (P,), offset (P,) and target (P, Q) of every token and every end that is coded."""
        plain = ~tokens.special[segments.first_tokens]  # (S,)
        inside = plain[segments.of_token]
        ends = (plain & (segments.lengths < self.longest)).nonzero()[:, 0]
        end_targets = tokens.ids.new_full((len(ends), self.vocabulary.slots), IGNORED)
        end_targets[:, 0] = self.vocabulary.codebook_size
        index = torch.cat([segments.of_token[inside], ends])
        offsets = torch.cat([segments.offsets[inside], segments.lengths[ends]])
        return index, offsets, torch.cat([tokens.ids[inside], end_targets])

    @torch.no_grad()
    def expand(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable tokens of all segments, in one step: (S, D) → ids (S, L, Q) and lengths (S,).

        Ids from a segment's length on have no meaning.
        """
        return self._most_probable(self.head.logits(self.position_vectors(vectors).flatten(0, 1)))

    def _most_probable(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of all positions, per slot (S·L, K) → ids (S, L, Q) and lengths (S,)."""
        size = self.vocabulary.codebook_size
        first = logits[0].view(-1, self.longest, size + 1)
        ends = first.argmax(-1) == size
        ends[:, 0] = False  # a segment has a token
        lengths = torch.where(ends.any(1), ends.int().argmax(1), self.longest)
        ids = torch.stack([slot[:, :size].argmax(-1) for slot in logits], dim=-1)
        return ids.view(len(lengths), self.longest, self.vocabulary.slots), lengths

    @torch.no_grad()
    def errors(self, vectors: Tensor, tokens: Tokens, segments: Segments) -> Tensor:
        """(S,) how many tokens of each segment `expand` gets wrong: wrong, missing and superfluous ones."""
        return self._errors(self.head.logits(self.position_vectors(vectors).flatten(0, 1)), tokens, segments)

    def _errors(self, logits: list[Tensor], tokens: Tokens, segments: Segments) -> Tensor:
        ids, lengths = self._most_probable(logits)
        inside = segments.offsets < lengths[segments.of_token]
        right = inside & (ids[segments.of_token, segments.offsets.clamp(max=self.longest - 1)] == tokens.ids).all(1)
        errors = (lengths - segments.lengths).clamp(min=0)
        return errors.index_add(0, segments.of_token, (~right).to(errors.dtype))

    # predict: context and tokens so far → the next token's hidden vector

    def predict(self, context: Tensor, tokens: Tokens, segments: Segments) -> Tensor:
        """(T, D') what is known of token t before it: from tokens < t and the context of its segment.

        context: (S, C), vector s made from segments before s alone. Token t itself, and whether it turned out
        special, has no effect here: see Segments.context.
        """
        x = tokens.packing.shift(self.embedding(tokens), self.start)
        x = x + gather_rows(self.from_context(context), segments.context)
        return self.predictor(x, tokens.packing)


def _summed(nll: Tensor, segment: Tensor, count: int) -> Tensor:
    """(P,) nll and the segment of each → (S,) their sums."""
    return nll.new_zeros(count).index_add(0, segment, nll)
