"""The memory of a text that comes some tokens at a time: of each level's tokens the last ones, in rings.

Letters: B rows of the memory, R rows that take a step, n tokens a row, C slots, Q slots of a token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.hierarchical.incremental_parts import IncrementalEntropyModel, first_hidden
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.incremental.folded import FoldedEmbedding
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.incremental.match_memory import MatchMemory
from abstractinator.components.incremental.next_tokens import NextTokens
from abstractinator.components.incremental.ring import Ring, entry_index, ring_of
from abstractinator.components.token_embedding import HISTORY, TokenEmbedding
from abstractinator.components.token_hash import ngram_hashes, token_hash


@dataclass(frozen=True)
class NewEntries:
    """Where the next n tokens of R rows are written, before their ids are known.

    rows, positions, entries, after: see NextTokens. past: (R, n, reach) entries of the tokens whose n-grams end there.
    """

    rows: Tensor
    positions: Tensor
    entries: Tensor
    after: Tensor
    past: Tensor

    def each(self) -> list[NewEntries]:
        """Those of the n tokens of each row one by one, for as many steps."""
        parts = zip(*(part.split(1, 1) for part in (self.positions, self.entries, self.after, self.past)), strict=True)
        return [NewEntries(self.rows, *part) for part in parts]


class Memory:
    """What is remembered of B rows of tokens of one vocabulary, by the token's position in its row.

    counts: (B,) tokens read. hashes: of the tokens, for n-gram embeddings. before: what is known of each token
    before it, (B, C, D) at its position: hidden vectors of the bytes, contexts of the segments.
    slots: C ≥ 2 and ≥ reach, with room for the tokens of a step. ahead: how many tokens come, or are rolled back, at
    once.
    """

    def __init__(
        self,
        embedding: FoldedEmbedding,
        transformer: IncrementalTransformer,
        reach: int,
        slots: int,
        before: Tensor,
        ahead: int,
    ) -> None:
        rows, self.slots = len(before), slots
        self.embedding, self.transformer, self.reach = embedding, transformer, reach
        self.counts = torch.zeros(rows, dtype=torch.int64, device=before.device)
        self.hashes = ring_of(HISTORY, rows, slots, device=before.device, dtype=torch.int64)
        self.number = torch.arange(slots, device=before.device)
        self.before = Ring(before.repeat(1, slots, 1), slots)  # at 0 it is what is known of the first token
        match = embedding.embedding.match
        self.match = MatchMemory(match, rows, ahead, before.device) if match else None

    def rings(self) -> list[Ring]:
        matched = self.match.rings() if self.match else []
        return [self.hashes, self.before, *matched, *self.transformer.rings()]

    def upcoming(self, rows: Tensor) -> Tensor:
        """(R, D) what is known of the next token."""
        return self.before.read(entry_index(rows, self.counts[rows], self.slots))

    def copy(self, other: Memory) -> None:
        """Takes over what a memory of the same rows, made for larger steps, has read."""
        self.counts = other.counts
        for mine, theirs in zip(self.rings(), other.rings(), strict=True):
            mine.copy_last(theirs, self.counts)

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these, which become 0 … R - 1."""
        self.counts = self.counts[rows]
        for ring in self.rings():
            ring.keep(rows)

    def new_entries(self, rows: Tensor, count: int) -> NewEntries:
        """Of the next `count` tokens of the rows (R,), behind those read so far."""
        return self._at(rows, self.counts[rows].unsqueeze(1) + torch.arange(count, device=rows.device))

    def _at(self, rows: Tensor, positions: Tensor) -> NewEntries:
        past = positions.unsqueeze(2) - self.number[: self.reach]
        return NewEntries(
            rows,
            positions,
            entry_index(rows, positions, self.slots),
            entry_index(rows, positions + 1, self.slots),
            entry_index(rows, past, self.slots),
        )

    def append(self, new: NewEntries, ids: Tensor) -> NextTokens:
        """Writes the tokens (R, n, Q); `store` has to follow."""
        self.hashes.write(new.entries, token_hash(ids))
        tokens = self._tokens(new, ids)
        if self.match is None:
            return tokens
        return replace(tokens, matches=self.match.append(new.rows, new.positions, ids, tokens.ngrams))

    def _tokens(self, new: NewEntries, ids: Tensor) -> NextTokens:
        ngrams = ngram_hashes(self.hashes.read(new.past))
        return NextTokens(new.rows, new.positions, new.entries, new.after, ids, ngrams)

    def store(self, tokens: NextTokens, lengths: Tensor, before: Tensor) -> None:
        """Of the appended tokens the first `lengths` (R,) of each row count, and (R, n, D) is known after each."""
        self.before.write(tokens.after, before)
        self.counts.index_add_(0, tokens.rows, lengths)


class LevelMemory(Memory):
    """A level's memory of its lower tokens: also the tokens of the open segment, and how segments were cut.

    pending: (B,) how many of the last tokens the rule has not seen yet, as no segment could end with them: the entropy
    model reads them together with the next. cuts: (B, C, 3) after each of the others: tokens since the rule
    began a segment, the position where the open segment begins, and the number of segments complete. entropy: (B, C)
    see SegmentationState. known: the codes of segments that were complete before, for generated text repeats its
    segments.
    """

    def __init__(self, level: Level, lower: VectorQuantizer | None, ahead: int, context: Tensor) -> None:
        """lower: what made the codes that are the level's tokens; None for bytes."""
        compressor, expander, device, rows = level.compressor, level.expander, context.device, len(context)
        embeddings = (expander.embedding, getattr(compressor.entropy_model, "embedding", None))
        reach = max(embedding.reach for embedding in embeddings if isinstance(embedding, TokenEmbedding))
        predictor = IncrementalTransformer(expander.predictor, rows, ahead)
        before = first_hidden(expander, context, predictor, torch.arange(rows, device=device))
        at_once = ahead + compressor.segmenter.config.shortest - 1  # tokens that the rule reads
        slots, model = max(reach, expander.longest, 2) + at_once, compressor.entropy_model
        super().__init__(FoldedEmbedding(expander.embedding, lower), predictor, reach, slots, before, ahead)
        self.entropy_model = IncrementalEntropyModel(model, lower, rows, at_once) if model else None
        self.pending = torch.zeros_like(self.counts)
        self.ids = ring_of(
            compressor.vocabulary.bos, rows, slots, compressor.vocabulary.slots, device=device, dtype=torch.int64
        )
        self.cuts = ring_of(0, rows, slots, 3, device=device, dtype=torch.int64)
        self.entropy = Ring(compressor.segmenter.begin(rows, device).entropy[:, None].repeat(1, slots), slots)
        self.known: dict[tuple[int, ...], list[int]] = {}

    def rings(self) -> list[Ring]:
        more = [self.ids, self.cuts, self.entropy]
        return [*super().rings(), *more, *(self.entropy_model.transformer.rings() if self.entropy_model else [])]

    def copy(self, other: Memory) -> None:
        super().copy(other)
        assert isinstance(other, LevelMemory)
        self.pending, self.known = other.pending, other.known

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.pending = self.pending[rows]

    def last_cut(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the last token that the rule has read (R,): its slot, and what `cuts` holds there (R, 3); and how
        many were read since."""
        pending = self.pending[rows]
        slot = entry_index(rows, self.counts[rows] - pending - 1, self.slots)
        return slot, self.cuts.read(slot), pending

    def open_tokens(self, rows: Tensor) -> Tensor:
        """(R,) tokens behind the last boundary."""
        return self.counts[rows] - self.last_cut(rows)[1][:, 1]

    def with_pending(self, tokens: NextTokens, pending: Tensor, longest: int) -> NextTokens:
        """(R, longest + n) The pending tokens of each row (R,) and these; what follows them has no meaning."""
        rows = tokens.rows
        positions = tokens.positions[:, :1] - pending.unsqueeze(1) + self.number[: longest + tokens.positions.shape[1]]
        new = self._at(rows, positions)
        return self._tokens(new, self.ids.read(new.entries))
