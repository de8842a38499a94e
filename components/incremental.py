"""The predict path token by token, with caches: what `forward` computes at once, as bytes come.

A byte goes in at the bottom. Where it completes a segment, the segment's code goes in one level up, and so
on to the top; then context comes down again. Upper levels run only at boundaries, and for the rows of the
batch that have one. Memory is one window per layer, however long the text.

Letters: B rows of the state, R rows that take a step, Q slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.hierarchical_autoencoder import HierarchicalAutoencoder, Level
from components.packing import Packing
from components.segmentation import SegmentationState, Segments, one_segment_a_row
from components.sliding_window_attention import AttentionCache
from components.token_embedding import HISTORY, TokenEmbedding
from components.token_hash import token_hash
from components.tokens import BYTES, Tokens, pack_bytes


@dataclass
class Past:
    """Hashes of the last tokens of each row, newest first: (B, reach). What n-gram embeddings look at."""

    hashes: Tensor

    @classmethod
    def empty(cls, rows: int, reach: int, device: torch.device) -> Past:
        return cls(torch.full((rows, reach), HISTORY, device=device))

    def push(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Takes in tokens (R, Q) and returns the hashes (R, reach) up to them."""
        new = torch.cat([token_hash(ids)[:, None], self.hashes[rows, :-1]], dim=1)
        self.hashes[rows] = new
        return new

    def fill(self, tokens: Tokens) -> None:
        """Takes in whole rows, all but the last token of each."""
        hashes, packing = token_hash(tokens.ids), tokens.packing
        for back in range(self.hashes.shape[1]):
            position = packing.lengths - 2 - back
            there = position >= 0
            self.hashes[there, back] = hashes[(packing.offsets + position)[there]]


@dataclass
class LevelState:
    """One level's memory of B rows: what it has read, its open segment, and the context before that."""

    past: Past
    entropy_caches: list[AttentionCache]
    predictor_caches: list[AttentionCache]
    segmentation: SegmentationState
    open_ids: Tensor  # (B, L, Q)
    open_vectors: Tensor | None  # (B, L, D)
    open_lengths: Tensor  # (B,)
    context: Tensor  # (B, C)


@dataclass
class TopState:
    """The top transformer's memory of B rows."""

    past: Past
    caches: list[AttentionCache]


class IncrementalModel:
    """A model with the state of B rows of text, every row beginning with BOS.

    `prefill` reads whole prompts at once, `advance` single bytes; both return hidden vectors that the
    model's byte_head turns into the distribution of the next byte.
    """

    def __init__(self, model: HierarchicalAutoencoder, rows: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.levels = [self._level_state(level, rows) for level in model.levels]
        top = model.top
        self.top = TopState(
            Past.empty(rows, top.embedding.reach, self.device),
            top.transformer.empty_caches(rows, self.device),
        )

    def _level_state(self, level: Level, rows: int) -> LevelState:
        compressor, expander = level.compressor, level.expander
        reach = max(
            embedding.reach
            for embedding in (expander.embedding, getattr(compressor.entropy_model, "embedding", None))
            if isinstance(embedding, TokenEmbedding)
        )
        longest, slots = expander.longest, compressor.alphabet.slots
        width = compressor.vector_width
        zeros = torch.zeros(rows, longest, slots, dtype=torch.int64, device=self.device)
        entropy_model = compressor.entropy_model
        return LevelState(
            Past.empty(rows, reach, self.device),
            entropy_model.transformer.empty_caches(rows, self.device) if entropy_model else [],
            expander.predictor.empty_caches(rows, self.device),
            compressor.segmenter.begin(rows, self.device),
            zeros,
            torch.zeros(rows, longest, width, device=self.device) if width else None,
            torch.zeros(rows, dtype=torch.int64, device=self.device),
            torch.zeros(rows, expander.from_context.in_features, device=self.device),
        )

    @torch.no_grad()
    def prefill(self, prompts: list[Tensor]) -> Tensor:
        """Reads one prompt a row, each a (n,) tensor of byte ids that begins with BOS → (B, D) for the next bytes.

        It is one ordinary forward pass over the prompts with one more byte each: what that byte is changes
        nothing before it and at it, and it stands for the open segment at every level.
        """
        rows = torch.nn.utils.rnn.pad_sequence(
            [torch.cat([prompt, prompt.new_zeros(1)]) for prompt in prompts], batch_first=True, padding_value=BYTES.pad
        ).to(self.device)
        lowest = pack_bytes(rows)
        compressed = self.model.compress(lowest, [state.entropy_caches for state in self.levels])
        tokens = [lowest, *(c.codes for c in compressed)]

        context = self.model.top(tokens[-1], self.top.caches)
        self.top.past.fill(tokens[-1])
        for i in reversed(range(len(self.levels))):
            state, segments = self.levels[i], compressed[i].segments
            state.past.fill(tokens[i])
            for cache in state.entropy_caches:
                cache.forget_last()
            segmenter = self.model.levels[i].compressor.segmenter
            state.segmentation = segmenter.resume(tokens[i], segments, compressed[i].entropies)
            self._open_segment(state, tokens[i], segments)
            state.context = context[_last(segments.packing)]
            context = self.model.levels[i].expander.predict(context, tokens[i], segments, state.predictor_caches)
        return context[_last(tokens[0].packing)]

    def _open_segment(self, state: LevelState, tokens: Tokens, segments: Segments) -> None:
        """Keeps the tokens of each row's last segment, without the row's last token."""
        last = _last(tokens.packing)
        inside = (segments.of_token == segments.of_token[last][tokens.packing.rows]) & (
            tokens.packing.positions < tokens.packing.lengths[tokens.packing.rows] - 1
        )
        rows, places = tokens.packing.rows[inside], segments.offsets[inside]
        state.open_ids[rows, places] = tokens.ids[inside]
        if state.open_vectors is not None and tokens.vectors is not None:
            state.open_vectors[rows, places] = tokens.vectors[inside]
        state.open_lengths = segments.offsets[last]

    @torch.no_grad()
    def advance(self, rows: Tensor, byte: Tensor) -> Tensor:
        """Reads one more byte of some rows. rows: (R,), byte: (R,) ids → (R, D) for the bytes after them."""
        return self._advance(0, rows, byte[:, None], None)

    def _advance(self, i: int, rows: Tensor, ids: Tensor, vectors: Tensor | None) -> Tensor:
        """Token ids (R, Q) of level i come in → what is known of the next token there: (R, D)."""
        if i == len(self.levels):
            top = self.model.top
            return top.step(ids, self.top.past.push(rows, ids), vectors, self.top.caches, rows)

        level, state = self.model.levels[i], self.levels[i]
        past = state.past.push(rows, ids)
        ends = self._append(level, state, rows, ids, vectors, past)  # (R,)
        if ends.any():
            done = rows[ends]
            codes = self._close_segment(level, state, done)
            state.context[done] = self._advance(i + 1, done, codes.ids, codes.vectors).to(state.context.dtype)
        return level.expander.step(state.context[rows], ids, past, vectors, state.predictor_caches, rows)

    def at_boundary(self, rows: Tensor) -> Tensor:
        """(R,) bool: whether the next byte begins a segment at every level."""
        open_tokens = torch.stack([state.open_lengths[rows] for state in self.levels])
        return (open_tokens == 0).all(0)

    def advance_top(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Reads one more highest code (R, Q) of some rows, past all levels → (R, D) the context after it."""
        vectors = self.model.levels[-1].compressor.quantizer.decode(ids)
        return self._advance(len(self.levels), rows, ids, vectors)

    def _append(
        self, level: Level, state: LevelState, rows: Tensor, ids: Tensor, vectors: Tensor | None, past: Tensor
    ) -> Tensor:
        """Puts a token into the open segment → whether the segment ends with it, (R,) bool."""
        place = state.open_lengths[rows]
        state.open_ids[rows, place] = ids
        if state.open_vectors is not None and vectors is not None:
            state.open_vectors[rows, place] = vectors
        state.open_lengths[rows] = place + 1
        compressor = level.compressor
        entropy = None
        if compressor.entropy_model is not None:
            entropy = compressor.entropy_model.step(ids, past, vectors, state.entropy_caches, rows)
        special = ids[:, 0] >= compressor.alphabet.codebook_size
        return compressor.segmenter.step(state.segmentation, rows, ids[:, 0], special, entropy)

    def _close_segment(self, level: Level, state: LevelState, rows: Tensor) -> Tokens:
        """The code of each row's open segment; the segment is emptied."""
        lengths = state.open_lengths[rows]
        packing = Packing.from_lengths(lengths)
        ids = state.open_ids[rows][packing.rows, packing.positions]
        vectors = None
        if state.open_vectors is not None:
            vectors = state.open_vectors[rows][packing.rows, packing.positions]
        tokens = Tokens(ids, packing, level.compressor.alphabet, vectors)
        state.open_lengths[rows] = 0
        return level.compressor.encode(tokens, one_segment_a_row(tokens)).codes


def _last(packing: Packing) -> Tensor:
    """(B,) the packed place of each row's last token."""
    return packing.offsets + packing.lengths - 1
