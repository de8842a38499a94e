"""The predict path some tokens at a time, with caches: what `forward` computes at once, as bytes come.

Bytes go in at the bottom. Where they complete segments, the segments' codes go in one level up, and so on to
the top; then context comes down again. Upper levels run only for the rows of the batch that complete a segment.
All memory is rings (see Ring), so it does not grow with the text, and the last tokens of a row can be taken back.

Letters: B rows of the state, R rows that take a step, n tokens a row, Q slots, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.hierarchical_autoencoder import HierarchicalAutoencoder, Level
from components.packing import Packing
from components.ring import Ring, ring_of
from components.segmentation import SegmentationState, is_spacelike, one_segment_a_row
from components.sliding_window_attention import AttentionCache
from components.token_embedding import HISTORY, TokenEmbedding, ngram_hashes
from components.token_hash import token_hash
from components.tokens import BYTES, NextTokens, Tokens


class Memory:
    """What is remembered of B rows of tokens of one alphabet, by the token's position in its row.

    counts: (B,) tokens read. hashes: of the tokens, for n-gram embeddings. before: what is known of each token
    before it, (B, C, D) at its position: hidden vectors of the bytes, contexts of the segments.
    """

    def __init__(self, rows: int, ahead: int, reach: int, caches: list[AttentionCache], before: Tensor) -> None:
        self.caches, self.reach = caches, reach
        self.counts = torch.zeros(rows, dtype=torch.int64, device=before.device)
        self.hashes = ring_of(HISTORY, rows, reach + ahead, device=before.device, dtype=torch.int64)
        self.before = ring_of(0.0, rows, ahead + 2, before.shape[-1], device=before.device, dtype=before.dtype)
        self.before.write(torch.arange(rows, device=before.device), self.counts[:, None], before)

    def rings(self) -> list[Ring]:
        return [self.hashes, self.before, *(ring for cache in self.caches for ring in (cache.keys, cache.values))]

    def upcoming(self, rows: Tensor) -> Tensor:
        """(R, D) what is known of the next token."""
        return self.before.read(rows, self.counts[rows])

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these, which become 0 … R - 1."""
        self.counts = self.counts[rows]
        for ring in self.rings():
            ring.keep(rows)

    def enter(self, rows: Tensor, ids: Tensor, vectors: Tensor | None) -> NextTokens:
        """Tokens (R, n, Q) behind those read so far; `counts` is the caller's to move."""
        ahead = torch.arange(ids.shape[1], device=ids.device)
        positions = self.counts[rows][:, None] + ahead
        self.hashes.write(rows, positions, token_hash(ids))
        back = torch.arange(self.reach, device=ids.device)
        past = self.hashes.read(rows, positions[:, :, None] - back)
        return NextTokens(rows, positions, ids, ngram_hashes(past), vectors)


class LevelMemory(Memory):
    """A level's memory of its lower tokens: also the tokens of the open segment, and how segments were cut.

    cuts: (B, C, 3) after each token: tokens since the rule began a segment, the position where the open segment
    begins, and the number of segments complete. entropy: (B, C) see SegmentationState.
    """

    def __init__(self, level: Level, rows: int, ahead: int, context: Tensor) -> None:
        compressor, expander, device = level.compressor, level.expander, context.device
        embeddings = (expander.embedding, getattr(compressor.entropy_model, "embedding", None))
        reach = max(embedding.reach for embedding in embeddings if isinstance(embedding, TokenEmbedding))
        caches = expander.predictor.empty_caches(rows, ahead, device)
        every = torch.arange(rows, device=device)
        super().__init__(rows, ahead, reach, caches, expander.begin(context, caches, every))
        model, slots = compressor.entropy_model, expander.longest + ahead
        self.entropy_caches = model.transformer.empty_caches(rows, ahead, device) if model else []
        self.ids = ring_of(0, rows, slots, compressor.alphabet.slots, device=device, dtype=torch.int64)
        self.vectors: Ring | None = None
        if compressor.vector_width:
            self.vectors = ring_of(0, rows, slots, compressor.vector_width, device=device, dtype=torch.float32)
        self.cuts = ring_of(0, rows, slots, 3, device=device, dtype=torch.int64)
        start = compressor.segmenter.begin(rows, device)
        self.entropy = Ring(start.entropy[:, None].repeat(1, slots))

    def rings(self) -> list[Ring]:
        more = [self.ids, self.cuts, self.entropy, *([self.vectors] if self.vectors else [])]
        return [*super().rings(), *more, *(r for cache in self.entropy_caches for r in (cache.keys, cache.values))]

    def last(self, rows: Tensor) -> tuple[SegmentationState, Tensor]:
        """The state of the segmentation (R,) after the last token, and where the open segment begins (R,)."""
        position = self.counts[rows][:, None] - 1
        cuts = self.cuts.read(rows, position)[:, 0]
        spacelike = is_spacelike(self.ids.read(rows, position)[:, 0, 0])
        return SegmentationState(self.entropy.read(rows, position)[:, 0], cuts[:, 0], spacelike), cuts[:, 1]


class IncrementalModel:
    """A model with the state of B rows of text, every row beginning with BOS.

    `read` takes in bytes, `hidden` tells what is known of the next one, `take_back` undoes the last of them.
    ahead: the most tokens that are read, or taken back, at once.
    """

    @torch.no_grad()
    def __init__(self, model: HierarchicalAutoencoder, rows: int, ahead: int = 32) -> None:
        self.model, self.ahead = model, ahead
        self.device = next(model.parameters()).device
        every = torch.arange(rows, device=self.device)
        top = model.top
        caches = top.transformer.empty_caches(rows, ahead, self.device)
        self.top = Memory(rows, ahead, top.embedding.reach, caches, top.begin(caches, every))
        self.levels: list[LevelMemory] = []
        for level in reversed(model.levels):
            above = self.memories[0]
            self.levels.insert(0, LevelMemory(level, rows, ahead, above.upcoming(every)[:, None]))
        self.read(every, torch.full((rows, 1), BYTES.bos, device=self.device), torch.ones_like(every))

    @property
    def memories(self) -> list[Memory]:
        """From the bytes up."""
        return [*self.levels, self.top]

    @property
    def nbytes(self) -> int:
        """Memory that the state takes; it does not grow."""
        return sum(ring.data.nbytes for memory in self.memories for ring in memory.rings())

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these (R,), ascending, which become 0 … R - 1."""
        for memory in self.memories:
            memory.keep(rows)

    def prefill(self, texts: list[bytes]) -> None:
        """Reads one text a row, some bytes at a time."""
        for start in range(0, max(map(len, texts), default=0), self.ahead):
            parts = [text[start : start + self.ahead] for text in texts]
            rows = [row for row, part in enumerate(parts) if part]
            longest = max(map(len, parts))
            padded = torch.tensor([[*parts[row], *[0] * (longest - len(parts[row]))] for row in rows])
            lengths = torch.tensor([len(parts[row]) for row in rows])
            self.read(torch.tensor(rows).to(self.device), padded.to(self.device), lengths.to(self.device))

    @torch.no_grad()
    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Takes in up to `ahead` bytes of some rows → (R, n, D) as `hidden`, after each of them.

        rows: (R,) ascending. ids: (R, n), of which the first `lengths` (R,) of each row count.
        """
        return self._read(0, rows, ids[:, :, None], None, lengths)

    def hidden(self, rows: Tensor) -> Tensor:
        """(R, D) what the model's byte_head makes the distribution of the next byte of."""
        return self.levels[0].upcoming(rows)

    def open_tokens(self, rows: Tensor) -> Tensor:
        """(R, L) how many tokens of each level the text has behind the last boundary there."""
        return torch.stack([m.counts[rows] - m.cuts.read(rows, m.counts[rows] - 1)[:, 1] for m in self.levels], dim=1)

    def take_back(self, rows: Tensor, counts: Tensor) -> None:
        """Forgets the last `counts` (R,) bytes of some rows, at most as many as the last call of `read` took in."""
        for i, level in enumerate(self.levels):
            level.counts[rows] -= counts
            counts = self.memories[i + 1].counts[rows] - level.cuts.read(rows, level.counts[rows] - 1)[:, 2]
        self.top.counts[rows] -= counts

    @torch.no_grad()
    def read_codes(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Takes in one more highest code (R, Q) of some rows, past all levels → (R, C) the context after it."""
        vectors = self.model.levels[-1].compressor.quantizer.decode(ids)
        return self._read(len(self.levels), rows, ids[:, None], vectors[:, None], torch.ones_like(rows))[:, 0]

    @torch.no_grad()
    def plan(self, ids: Tensor, counts: Tensor, opened: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable bytes of highest codes, each level decoded at once → (R, n), of which (R,) count.

        ids: (R, m, Q), of which the first `counts` (R,) of each row count. opened: (R, L) see `open_tokens`, the
        first code being that of the open segment; zeros at a boundary.
        """
        for i in reversed(range(len(self.model.levels))):
            level, number = self.model.levels[i], torch.arange(ids.shape[1], device=self.device)
            tokens, lengths = level.expander.expand(level.compressor.quantizer.decode(ids.flatten(0, 1)))
            place = torch.arange(tokens.shape[1], device=self.device)
            lengths = lengths.view(ids.shape[:2]) * (number < counts[:, None])
            inside = (place < lengths[:, :, None]) & (place >= opened[:, i, None, None] * (number == 0)[:, None])
            ids, counts = _packed_rows(tokens.view(*inside.shape, tokens.shape[-1]), inside)
        return ids[:, :, 0], counts

    def _read(self, i: int, rows: Tensor, ids: Tensor, vectors: Tensor | None, lengths: Tensor) -> Tensor:
        """Tokens (R, n, Q) of level i, or highest codes, come in → what is known after each, (R, n, D)."""
        memory = self.memories[i]
        tokens = memory.enter(rows, ids, vectors)
        if i == len(self.levels):
            before = self.model.top.step(tokens, memory.caches)
        else:
            complete = self._complete_segments(i, tokens, lengths)
            context = self.memories[i + 1].before.read(rows, complete)
            before = self.model.levels[i].expander.step(context, tokens, memory.caches)
        memory.before.write(rows, tokens.positions + 1, before)
        memory.counts[rows] += lengths
        return before

    def _complete_segments(self, i: int, tokens: NextTokens, lengths: Tensor) -> Tensor:
        """Cuts the tokens into segments and sends the complete ones one level up → (R, n) how many there are then."""
        memory, rows, positions = self.levels[i], tokens.rows, tokens.positions
        ends, run, begin = self._cut(i, tokens, lengths)
        before = self.memories[i + 1].counts[rows][:, None]
        complete = before + ends.cumsum(1)
        begins = torch.where(ends, positions + 1, begin[:, None]).cummax(1).values
        memory.cuts.write(rows, positions, torch.stack([run, begins, complete], dim=-1))
        row, place = ends.nonzero().unbind(1)
        if len(row):
            first = torch.cat([begin[:, None], begins[:, :-1]], dim=1)[row, place]
            self._send_up(i, rows, row, first, positions[row, place] + 1 - first)
        return complete

    def _cut(self, i: int, tokens: NextTokens, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, n) whether a segment ends with each token, (R, n) the rule's run, (R,) where the open segment begins."""
        compressor, memory = self.model.levels[i].compressor, self.levels[i]
        rows, positions = tokens.rows, tokens.positions
        memory.ids.write(rows, positions, tokens.ids)
        if memory.vectors is not None and tokens.vectors is not None:
            memory.vectors.write(rows, positions, tokens.vectors)
        entropy = None
        if compressor.entropy_model is not None:
            entropy = compressor.entropy_model.step(tokens, memory.entropy_caches)
        last, begin = memory.last(rows)
        token = tokens.ids[:, :, 0]
        special = token >= compressor.alphabet.codebook_size
        ends, state = compressor.segmenter.step(last, token, special, entropy)
        memory.entropy.write(rows, positions, state.entropy)
        return ends & (torch.arange(token.shape[1], device=self.device) < lengths[:, None]), state.run, begin

    def _send_up(self, i: int, rows: Tensor, row: Tensor, first: Tensor, lengths: Tensor) -> None:
        """Makes codes of complete segments, S of them, and reads them one level up.

        row: (S,) each segment's index into `rows`, ascending. first, lengths: (S,) where it lies in its row.
        """
        memory, compressor = self.levels[i], self.model.levels[i].compressor
        packing = Packing.from_lengths(lengths)
        positions, of_token = (first[packing.rows] + packing.positions)[:, None], rows[row][packing.rows]
        vectors = memory.vectors.read(of_token, positions)[:, 0] if memory.vectors is not None else None
        tokens = Tokens(memory.ids.read(of_token, positions)[:, 0], packing, compressor.alphabet, vectors)
        codes = compressor.encode_each(tokens, one_segment_a_row(tokens), self.model.levels[i].expander)
        assert codes.vectors is not None
        index, counts = row.unique_consecutive(return_counts=True)
        inside = torch.arange(int(counts.max()), device=self.device) < counts[:, None]  # (R', m)
        ids = codes.ids.new_zeros(*inside.shape, codes.ids.shape[1])
        above = codes.vectors.new_zeros(*inside.shape, codes.vectors.shape[1])
        ids[inside], above[inside] = codes.ids, codes.vectors
        self._read(i + 1, rows[index], ids, above, counts)


def _packed_rows(tokens: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R, m, L, Q) of m segments a row, where `inside` (R, m, L), moved to the left of their row → (R, n, Q),
    and (R,) how many there are."""
    counts = inside.sum((1, 2))
    there = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (R, n)
    packed = tokens.new_zeros(*there.shape, tokens.shape[-1])
    packed[there] = tokens[inside]
    return packed, counts
