"""The predict path some tokens at a time, with caches: what `forward` computes for a whole text.

Bytes go in at the bottom. Where they complete segments, the segments' codes go in one level up, and so on to
the top; then context comes down again. Upper levels run only for the rows of the batch that complete a segment.
Memory is rings (see Ring) and the codes of at most _KNOWN segments a level, so it does not grow with the text, and the
last tokens of a row can be rolled back.

Letters: B rows of the state, R rows that take a step, n tokens a row, Q slots, D width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.hierarchical.incremental_parts import first_context, next_context, next_hidden
from abstractinator.components.hierarchical.level_memory import LevelMemory, Memory, NewEntries
from abstractinator.components.hierarchical.segmentation import SegmentationState, one_segment_a_row, take_segments
from abstractinator.components.incremental.folded import FoldedDepthHead, FoldedEmbedding
from abstractinator.components.incremental.incremental_transformer import CacheEntries, IncrementalTransformer
from abstractinator.components.incremental.next_tokens import NextTokens
from abstractinator.components.incremental.ring import entry_index
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import BYTES, Tokens

_KNOWN = 4096  # segments of a level whose codes are remembered
_PREFILL = 512  # bytes of a step that reads a prompt; attention costs more the longer a step is, all else less
_PREFILL_ROWS = 8  # rows that take so long a step together, which bounds its memory
_LARGER = 4  # a state for larger steps pays where these are at least as many times as large
_WAITING_FOR_ONE = 3  # rows that may wait for one that continues


@dataclass(frozen=True)
class _Cut:
    """New tokens of a level, cut into segments.

    lengths: (R,) how many of each row count. ends: (R, n) whether a segment ends with each. first: (R, n) where the
    segment of each begins. complete: (R, n) segments of the row that are complete after each. seen: whether the rule
    has read them.
    """

    tokens: NextTokens
    lengths: Tensor
    ends: Tensor
    first: Tensor
    complete: Tensor
    seen: bool = True

    def of(self, index: Tensor) -> _Cut:
        """That of some of the rows, by their entries among them."""
        lengths, ends, first, complete = (x[index] for x in (self.lengths, self.ends, self.first, self.complete))
        return _Cut(self.tokens.of(index), lengths, ends, first, complete, self.seen)


class IncrementalModel:
    """A model with the state of B rows of text, every row beginning with BOS.

    `read` takes in bytes, `hidden` tells what is known of the next one, `roll_back` undoes the last of them.
    ahead: the most tokens that are read, or rolled back, at once.

    Rows complete segments at different times, and the levels above cost less a row when they run for many. `read_byte`
    therefore leaves rows that complete one waiting, (B,) bool, and these cannot be read until they continue.
    """

    @torch.no_grad()
    def __init__(self, model: Hierarchy, rows: int, ahead: int = 32) -> None:
        self.model, self.ahead = model, ahead
        self.device = next(model.parameters()).device
        every = torch.arange(rows, device=self.device)
        self.byte_head, self.code_head = FoldedDepthHead(model.byte_head), FoldedDepthHead(model.top.head)
        aheads = [ahead]  # of each level's tokens, from the bytes up: the most segments that complete at once
        for level in model.levels:
            aheads.append(1 + (aheads[-1] - 1) // level.compressor.segmenter.config.shortest)
        lower = [None, *(level.compressor.quantizer for level in model.levels)]  # what made each level's tokens
        embedding, top = model.top.embedding, IncrementalTransformer(model.top.transformer, rows, aheads[-1])
        slots, before = max(embedding.reach, 2) + aheads[-1], first_context(model.top, top, every)
        self.top = Memory(FoldedEmbedding(embedding, lower[-1]), top, embedding.reach, slots, before, aheads[-1])
        self.levels: list[LevelMemory] = []
        for i in reversed(range(len(model.levels))):
            context = self.memories[0].upcoming(every)[:, None]
            self.levels.insert(0, LevelMemory(model.levels[i], lower[i], aheads[i], context))
        self.waiting = torch.zeros_like(every, dtype=torch.bool)
        self.read(every, torch.full((rows, 1), BYTES.bos, device=self.device), torch.ones_like(every))

    @property
    def memories(self) -> list[Memory]:
        """From the bytes up."""
        return [*self.levels, self.top]

    @property
    def nbytes(self) -> int:
        """Memory of the rings."""
        return sum(ring.data.nbytes for memory in self.memories for ring in memory.rings())

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these (R,), ascending, which become 0 … R - 1."""
        self.waiting = self.waiting[rows]
        for memory in self.memories:
            memory.keep(rows)

    def prefill(self, texts: list[bytes]) -> None:
        """Reads one text a row, behind BOS: a long one in large steps, by a state with larger rings."""
        ahead = min(_PREFILL, _PREFILL_ROWS * _PREFILL // len(texts), max(map(len, texts)))
        if ahead <= _LARGER * self.ahead:
            return self._read_texts(texts)
        large = IncrementalModel(self.model, len(texts), ahead)
        large._read_texts(texts)
        for mine, theirs in zip(self.memories, large.memories, strict=True):
            mine.copy(theirs)

    def _read_texts(self, texts: list[bytes]) -> None:
        """`ahead` bytes at a time."""
        for start in range(0, max(map(len, texts)), self.ahead):
            parts = [text[start : start + self.ahead] for text in texts]
            rows = [row for row, part in enumerate(parts) if part]
            longest = max(map(len, parts))
            padded = torch.tensor([[*parts[row], *[0] * (longest - len(parts[row]))] for row in rows])
            lengths = torch.tensor([len(parts[row]) for row in rows])
            self.read(torch.tensor(rows).to(self.device), padded.to(self.device), lengths.to(self.device))

    @torch.no_grad()
    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Reads up to `ahead` bytes of some rows → (R, n, D) as `hidden`, after each of them.

        rows: (R,) ascending. ids: (R, n), of which the first `lengths` (R,) of each row count.
        """
        return self._read(0, rows, ids[:, :, None], lengths)

    @torch.no_grad()
    def read_byte(self, rows: Tensor, byte: Tensor) -> tuple[Tensor, Tensor]:
        """Reads one byte (R,) of some rows (R,), ascending, or, where rows wait, of none → the rows that continue, and
        `hidden` (R', D) of them.

        Rows that complete a segment wait until they are more than _WAITING_FOR_ONE for each row that does not; then
        all that wait continue.
        """
        if not len(rows):
            return self._catch_up()
        memory = self.levels[0]
        cut = self._cut(0, memory.append(memory.new_entries(rows, 1), byte.view(-1, 1, 1)), torch.ones_like(rows))
        ended, waited = cut.ends[:, 0], bool(self.waiting.any())
        count = int(ended.sum())
        enough = count > _WAITING_FOR_ONE * (len(rows) - count)
        if not waited and (enough or not count):  # no row has to wait
            if count:
                self._send_up(0, cut)
            return rows, self._continue(0, cut)[:, 0]
        self.waiting[rows] = ended
        if count == len(rows):
            return self._catch_up()
        if count:
            cut = cut.of((~ended).nonzero()[:, 0])
        continuing, hidden = cut.tokens.rows, self._continue(0, cut)[:, 0]
        if int(self.waiting.sum()) <= _WAITING_FOR_ONE * len(continuing):
            return continuing, hidden
        more, after = self._catch_up()
        continuing, order = torch.cat([continuing, more]).sort()
        return continuing, torch.cat([hidden, after])[order]

    def _catch_up(self) -> tuple[Tensor, Tensor]:
        """Sends the segments of all rows that wait up → these rows, ascending, which continue, and `hidden` of them."""
        rows, memory = self.waiting.nonzero()[:, 0], self.levels[0]
        self.waiting[:] = False
        last = memory.ids.read(entry_index(rows, memory.counts[rows], memory.slots))[:, None]
        first, complete = memory.last_cut(rows)[1][:, 1:2], self.memories[1].counts[rows][:, None] + 1
        ends = torch.ones_like(first, dtype=torch.bool)
        tokens = memory.append(memory.new_entries(rows, 1), last)
        cut = _Cut(tokens, torch.ones_like(rows), ends, first, complete)
        self._send_up(0, cut)
        return rows, self._continue(0, cut)[:, 0]

    def hidden(self, rows: Tensor) -> Tensor:
        """(R, D) what `byte_head` makes the distribution of the next byte of."""
        return self.levels[0].upcoming(rows)

    def open_tokens(self, rows: Tensor) -> Tensor:
        """(R, L) number of tokens of each level behind its last boundary."""
        return torch.stack([memory.open_tokens(rows) for memory in self.levels], dim=1)

    def roll_back(self, rows: Tensor, counts: Tensor) -> None:
        """Forgets the last `counts` (R,) bytes of some rows, at most as many as the last call of `read` took in."""
        for i, level in enumerate(self.levels):
            level.counts[rows] -= counts
            level.pending[rows] = (level.pending[rows] - counts).clamp(min=0)
            counts = self.memories[i + 1].counts[rows] - level.last_cut(rows)[1][:, 2]
        self.top.counts[rows] -= counts

    def _read(self, i: int, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (R, n, Q) of level i, or highest codes, come in → what is known after each, (R, n, D)."""
        memory = self.memories[i]
        new = memory.new_entries(rows, ids.shape[1])
        if i == len(self.levels):
            return self._read_codes(new, memory.transformer.entries(rows, new.positions + 1), ids, lengths)
        cut = self._cut(i, memory.append(new, ids), lengths)
        self._send_up(i, cut)
        return self._continue(i, cut)

    def _read_codes(self, new: NewEntries, after: CacheEntries, ids: Tensor, lengths: Tensor) -> Tensor:
        """`_read` of highest codes. after: the top transformer's entries of the positions after them."""
        memory = self.top
        codes = memory.append(new, ids)
        context = next_context(codes, memory.embedding, memory.transformer, after)
        memory.store(codes, lengths, context)
        return context

    def _continue(self, i: int, cut: _Cut) -> Tensor:
        """Tokens of level i have been cut, and the segments that they complete sent up → what is known after each."""
        memory, above, tokens = self.levels[i], self.memories[i + 1], cut.tokens
        context = above.before.read(entry_index(tokens.rows, cut.complete, above.slots))
        before = next_hidden(self.model.levels[i].expander, context, tokens, memory.embedding, memory.transformer)
        memory.pending[tokens.rows] = 0 if cut.seen else memory.pending[tokens.rows] + 1
        memory.store(tokens, cut.lengths, before)
        return before

    def _cut(self, i: int, tokens: NextTokens, lengths: Tensor) -> _Cut:
        """Cuts tokens of level i, of which the first `lengths` (R,) of each row count, into segments."""
        compressor, memory, rows = self.model.levels[i].compressor, self.levels[i], tokens.rows
        memory.ids.write(tokens.entries, tokens.ids)
        slot, cuts, pending = memory.last_cut(rows)
        run, begin = cuts[:, 0], cuts[:, 1:2]
        above, count = self.memories[i + 1].counts[rows].unsqueeze(1), tokens.ids.shape[1]
        if count == 1:
            long_enough = run + pending + 1 >= compressor.segmenter.config.shortest
            if not (long_enough | compressor.vocabulary.is_special(tokens.ids[:, 0, 0])).any():
                return _Cut(tokens, lengths, torch.zeros_like(begin, dtype=torch.bool), begin, above, seen=False)
        late = int(pending.max())
        seen = memory.with_pending(tokens, pending, late) if late else tokens
        entropy = memory.entropy_model.step(seen) if memory.entropy_model else None
        token = seen.ids[:, :, 0]
        special = compressor.vocabulary.is_special(token)
        last = SegmentationState(memory.entropy.read(slot), run, memory.ids.read(slot)[:, 0])
        ends, state = compressor.segmenter.step(last, token, special, entropy)
        memory.entropy.write(seen.entries, state.entropy)
        ends = ends & (memory.number[: token.shape[1]] < (lengths + pending).unsqueeze(1))
        complete = above + ends.cumsum(1)
        begins = torch.where(ends, seen.positions + 1, begin).cummax(1).values
        memory.cuts.write(seen.entries, torch.stack([state.run, begins, complete], dim=-1))
        first = torch.cat([begin, begins[:, :-1]], dim=1)
        if late:
            new = pending.unsqueeze(1) + memory.number[:count]
            ends, first, complete = ends.gather(1, new), first.gather(1, new), complete.gather(1, new)
        return _Cut(tokens, lengths, ends, first, complete)

    def _send_up(self, i: int, cut: _Cut) -> None:
        """Makes codes of the segments of level i that are complete, S of them, and reads them one level up."""
        memory, compressor, rows = self.levels[i], self.model.levels[i].compressor, cut.tokens.rows
        row, end = cut.ends.nonzero().unbind(1)  # (S,)
        if not len(row):
            return
        first = cut.first[row, end]
        packing = Packing.from_lengths(cut.tokens.positions[row, end] + 1 - first)
        entries = entry_index(rows[row][packing.rows], first[packing.rows] + packing.positions, memory.slots)
        codes = self._codes(i, Tokens(memory.ids.read(entries), packing, compressor.vocabulary))
        index, counts = row.unique_consecutive(return_counts=True)
        inside = torch.arange(int(counts.max()), device=self.device) < counts[:, None]  # (R', m)
        ids = codes.new_zeros(*inside.shape, codes.shape[1])
        ids[inside] = codes
        self._read(i + 1, rows[index], ids, counts)

    def _codes(self, i: int, tokens: Tokens) -> Tensor:
        """(S, Q) the codes of segments, one a row; those of segments that came before are not computed again."""
        compressor, known = self.model.levels[i].compressor, self.levels[i].known
        lengths, slots = tokens.packing.lengths.tolist(), tokens.vocabulary.slots
        flat, ends = tokens.ids.flatten().tolist(), itertools.accumulate(lengths)
        texts = [tuple(flat[(end - n) * slots : end * slots]) for end, n in zip(ends, lengths, strict=True)]
        if new := [s for s, text in enumerate(texts) if text not in known]:
            if len(known) + len(new) > _KNOWN:
                known.clear()
                new = list({text: s for s, text in enumerate(texts)}.values())
            some, segments = take_segments(tokens, one_segment_a_row(tokens), torch.tensor(new, device=self.device))
            codes = compressor.encode_each(replace(some, vectors=self._vectors(i, some.ids)), segments)
            known.update(zip((texts[s] for s in new), codes.tolist(), strict=True))
        return torch.tensor([known[text] for text in texts], device=self.device)

    def _vectors(self, i: int, ids: Tensor) -> Tensor | None:
        """Tokens (T, Q) of level i → the vectors (T, D) behind them, zeros for special ones; None for bytes."""
        if not i:
            return None
        quantizer = self.model.levels[i - 1].compressor.quantizer
        size = quantizer.codebook_size
        return quantizer.decode(ids.clamp(max=size - 1)).masked_fill(ids[:, :1] >= size, 0.0)


class CodeSteps:
    """The next `count` highest codes of some rows (R,), to be read one after the other, past all levels: where they go
    and what they see is computed for all of them at once."""

    def __init__(self, state: IncrementalModel, rows: Tensor, count: int) -> None:
        new = state.top.new_entries(rows, count)
        after = state.top.transformer.entries(rows, new.positions + 1)
        self._state, self._one = state, torch.ones_like(rows)
        self._left = zip(new.each(), after.each(), strict=True)

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Reads one more code (R, Q) of each row → (R, C) the context after it."""
        return self._state._read_codes(*next(self._left), ids.unsqueeze(1), self._one)[:, 0]
