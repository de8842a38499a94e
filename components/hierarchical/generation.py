"""Text from a prompt, in three ways.

    plan         the top codes are extended until EOS or a bound, and decoded block by block, all codes of a block
                 at once: one step of the top transformer per code, and none per byte
    exact        bytes are sampled one by one from the predict path: the model's own distribution of text
    speculative  the same distribution in fewer steps: a plan guesses the next bytes, the predict path reads all
                 of them at once, and what it samples there is kept as far as it agrees with the guess

In all of them memory is bounded, and bytes are available as they are made. `no_repeat_ngram_size` forbids repeated
n-grams of bytes; in `plan` it forbids repeated runs of as many codes as make about so many bytes.

Letters: B prompts, R rows that continue, n bytes a row, m codes a row, Q codes a segment.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.hierarchical.drafting import Drafts
from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.hierarchical.incremental_model import CodeSteps, IncrementalModel
from abstractinator.components.hierarchical.plan import decode_codes
from abstractinator.components.sampling import Sampler, WrittenText, repeats
from abstractinator.components.streaming import check_prompts, stream_pieces
from abstractinator.components.tokens import BYTES, pack_bytes
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig

_AHEAD = 32  # bytes that are read at once
_BLOCK = 32  # codes that are decoded at once


MODES = ("plan", "exact", "speculative")


def stream_bytes(model: Hierarchy, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
    """Continuations of the prompts, as bytes are made; each ends at EOS, a stop string or the bound. No part of a stop
    string is among the bytes.

    Prompts may differ in length and are not truncated: attention windows bound the memory, not the text. The prompts
    are read in this call, so its errors are raised here. Between two pieces the model is in the caller's mode, train or
    eval; its weights must not change. An empty prompt is the beginning of a document. Raises ValueError for an unknown
    mode and for no prompt.
    """
    check_prompts(prompts)
    model.check_precision()
    if config.mode is None:
        config = replace(config, mode=MODES[0])
    if config.mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {config.mode!r}")
    return stream_pieces(model, lambda: _Generation(model, prompts, config))


class _Generation:
    """One call of `generate_bytes`: the incremental state of the rows that continue, and their texts.

    prompts: of each row of the state, the index of its prompt.
    """

    def __init__(self, model: Hierarchy, prompts: Sequence[bytes], config: GenerationConfig) -> None:
        self.model, self.config = model, config
        self.state = IncrementalModel(model, len(prompts), _AHEAD)
        self.state.prefill(list(prompts))
        self.sample = Sampler(config, self.state.device)
        self.texts = [WrittenText(prompt, config) for prompt in prompts]
        self.prompts = list(range(len(prompts)))
        self.codes: list[deque[tuple[int, ...]]] = []  # of `plan` that must not repeat itself
        self.drafts = Drafts(model, self.state, len(prompts)) if config.mode == "speculative" else None

    def pieces(self) -> Iterator[Piece]:
        """The continuations as they come."""
        if self.config.mode == "plan":
            # The prompt's last segment is open: its end is found on the exact path, then codes take over.
            yield from self.write_bytes(until_boundary=True)
            yield from self.write_codes()
        else:
            yield from self.write_bytes(until_boundary=False)

    def write_bytes(self, *, until_boundary: bool) -> Iterator[Piece]:
        """Samples bytes for every row until its text ends, or until the text is at a boundary of all levels."""
        rows = self._unfinished(until_boundary)
        byte = self._choose_next(rows, self.state.hidden(rows)) if len(rows) else rows
        while len(rows) or self.state.waiting.any():
            self._write(rows, [[value] for value in byte.tolist()])
            yield from self._take()
            rows, byte = self._advance(*self._drop_ended(rows, byte), until_boundary)
            yield from self._take()

    def _advance(self, rows: Tensor, byte: Tensor, until_boundary: bool) -> tuple[Tensor, Tensor]:
        """Reads the byte (R,) of each row, and what was guessed behind it → the rows that continue, and (R,) the next
        byte of each.

        Rows that complete a segment without a guess wait until enough of them do.
        """
        if not len(rows) and not self.state.waiting.any():
            return rows, byte
        guesses = self.drafts.propose(rows, byte.tolist()) if self.drafts else []
        if not any(guesses):
            return self._read_byte(rows, byte, until_boundary)
        index = [i for i, guess in enumerate(guesses) if guess]
        guessed, following = rows[index], self._read_guesses(rows[index], byte[index], [guesses[i] for i in index])
        if len(index) == len(rows) and not self.state.waiting.any():
            return guessed, following
        # The others do not pay for the length of these guesses.
        index = [i for i, guess in enumerate(guesses) if not guess]
        continuing, after = self._read_byte(rows[index], byte[index], until_boundary)
        rows, order = torch.cat([guessed, continuing]).sort()
        return rows, torch.cat([following, after])[order]

    def _read_byte(self, rows: Tensor, byte: Tensor, until_boundary: bool) -> tuple[Tensor, Tensor]:
        """As `_advance`, for rows without a guess."""
        continuing, hidden = self.state.read_byte(rows, byte)
        self._accept(rows, byte, [b""] * len(rows))
        if until_boundary:
            inside = self.state.open_tokens(continuing).any(1)
            continuing, hidden = continuing[inside], hidden[inside]
        return continuing, self._choose_next(continuing, hidden) if len(continuing) else continuing

    def _read_guesses(self, rows: Tensor, byte: Tensor, guesses: list[bytes]) -> Tensor:
        """Reads a byte and a guess for each row, rolls back what of the guess is wrong → (R,) the byte behind it."""
        lengths = torch.tensor([len(guess) for guess in guesses], device=rows.device)
        longest = max(map(len, guesses))
        padded = [[*guess, *bytes(longest - len(guess))] for guess in guesses]
        guessed = torch.tensor(padded, dtype=byte.dtype, device=rows.device)
        hidden = self.state.read(rows, torch.cat([byte[:, None], guessed], dim=1), lengths + 1)
        choices = self._choose(rows, hidden, guesses)  # (R, n + 1)
        inside = torch.arange(longest, device=rows.device) < lengths[:, None]
        right = ((choices[:, :-1] == guessed) & inside).long().cumprod(1).sum(1)  # (R,)
        self.state.roll_back(rows, lengths - right)
        guesses = [guess[:count] for guess, count in zip(guesses, right.tolist(), strict=True)]
        self._write(rows, [list(guess) for guess in guesses])
        self._accept(rows, byte, guesses)
        return choices.gather(1, right[:, None])[:, 0]

    def _accept(self, rows: Tensor, byte: Tensor, guesses: list[bytes]) -> None:
        """Of each row a byte was read, and of the guess behind it this part was right."""
        if self.drafts:
            for row, first, guess in zip(rows.tolist(), byte.tolist(), guesses, strict=True):
                self.drafts.accept(row, first, guess)

    def _choose_next(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """hidden (R, D) behind the text of each row → (R,) the next byte."""
        return self._choose(rows, hidden.unsqueeze(1), [b""] * len(rows))[:, 0]

    def _choose(self, rows: Tensor, hidden: Tensor, guesses: list[bytes]) -> Tensor:
        """hidden (R, n, D) behind the text of each row and the first 0 … n - 1 bytes of a guess → (R, n) choices."""
        logits = self.state.byte_head.slot_logits(hidden.flatten(0, 1), rows.new_zeros(1, 0)).view(
            *hidden.shape[:2], -1
        )
        if self.config.no_repeat_ngram_size:
            for i, (row, guess) in enumerate(zip(rows.tolist(), guesses, strict=True)):
                recent = self.texts[self.prompts[row]].recent
                for n in range(len(guess) + 1):
                    banned = repeats(recent + guess[:n], self.config.no_repeat_ngram_size)
                    logits[i, n, list(banned)] = -math.inf
        return self.sample(logits)

    def write_codes(self) -> Iterator[Piece]:
        """Extends the top codes of every row, all of them at a boundary, and decodes them block by block."""
        rows = self._unfinished(False)
        if self.config.no_repeat_ngram_size:
            self.codes = [self._recent_codes(self.texts[prompt].recent) for prompt in self.prompts]
        while len(rows):
            left = max(self.texts[prompt].left for prompt in self.prompts)
            block = max(1, min(_BLOCK, math.ceil(left / self.model.target_bytes_per_code)))
            codes, counts = self._next_codes(rows, block)
            at_boundary = rows.new_zeros(len(rows), len(self.model.levels))
            planned, lengths = decode_codes(self.model, codes, counts, at_boundary)
            texts = [text[:count] for text, count in zip(planned.tolist(), lengths.tolist(), strict=True)]
            ended = (counts < block).tolist()
            self._write(rows, [[*text, *[BYTES.codebook_size] * end] for text, end in zip(texts, ended, strict=True)])
            yield from self._take()
            rows, _ = self._drop_ended(rows, rows)

    def _next_codes(self, rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Up to `block` highest codes (R, m, Q) for all rows, and how many came before EOS (R,)."""
        context = self.state.top.upcoming(rows)
        ids = rows.new_zeros(len(rows), block, self.model.top.vocabulary.slots)
        counts = torch.zeros_like(rows)
        steps = CodeSteps(self.state, rows, block)
        for m in range(block):
            code = self._choose_code(rows, context)
            plain = code[:, 0] < self.model.top.vocabulary.codebook_size
            if not plain.all():
                rows, code = rows[plain], code[plain]
                if not len(rows):
                    break
                steps = CodeSteps(self.state, rows, block - m)
            ids[rows, m] = code
            counts[rows] = m + 1
            context = steps.read(code)
        return ids, counts

    def _choose_code(self, rows: Tensor, context: Tensor) -> Tensor:
        """(R, C) → codes (R, Q), drawn slot by slot; K in slot 0 is the end of the text."""
        vocabulary, ids = self.model.top.vocabulary, rows.new_zeros(len(rows), 0)
        for slot in range(vocabulary.slots):
            earlier = ids.clamp(max=vocabulary.codebook_size - 1) if slot else ids
            logits = self.state.code_head.slot_logits(context, earlier)
            if self.config.no_repeat_ngram_size and slot == vocabulary.slots - 1:
                self._ban_codes(rows, ids, logits)
            ids = torch.cat([ids, self.sample(logits).unsqueeze(1)], dim=1)
        if self.config.no_repeat_ngram_size:
            for row, code in zip(rows.tolist(), map(tuple, ids.tolist()), strict=True):
                self.codes[row].append(code)
        return ids

    def _ban_codes(self, rows: Tensor, begins: Tensor, logits: Tensor) -> None:
        """Takes from the logits (R, K) of the last slot what would, behind `begins` (R, Q - 1), repeat codes."""
        size = max(2, round(self.config.no_repeat_ngram_size / self.model.target_bytes_per_code))
        for i, (row, begin) in enumerate(zip(rows.tolist(), map(tuple, begins.tolist()), strict=True)):
            last = {code[-1] for code in repeats(self.codes[row], size) if code[:-1] == begin}
            if len(last) < logits.shape[1]:  # with a small codebook all may be banned
                logits[i, list(last)] = -math.inf

    def _recent_codes(self, text: bytearray) -> deque[tuple[int, ...]]:
        """The highest codes of a text, and room for as many as repetition_window bytes have."""
        window = max(2, round(self.config.repetition_window / self.model.target_bytes_per_code))
        tokens = pack_bytes(torch.tensor([list(text)], dtype=torch.int64, device=self.state.device))
        return deque(map(tuple, self.model.compress(tokens)[-1].codes.ids.tolist()), maxlen=window)

    def _unfinished(self, until_boundary: bool) -> Tensor:
        rows = torch.arange(len(self.prompts), device=self.state.device)
        return rows[self.state.open_tokens(rows).any(1)] if until_boundary else rows

    def _write(self, rows: Tensor, values: list[list[int]]) -> None:
        """Adds bytes to the text of each row; K is the end."""
        for row, new in zip(rows.tolist(), values, strict=True):
            text = self.texts[self.prompts[row]]
            text.write(bytes(value for value in new if value < BYTES.codebook_size))
            if BYTES.codebook_size in new:
                text.end()

    def _take(self) -> Iterator[Piece]:
        """The bytes that can be shown by now."""
        for prompt in self.prompts:
            if data := self.texts[prompt].take():
                yield Piece(prompt, data)

    def _drop_ended(self, rows: Tensor, byte: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the rows whose text has ended out of the state → what is left of rows (R,) and their bytes (R,)."""
        if not any(self.texts[prompt].ended for prompt in self.prompts):
            return rows, byte
        going = torch.tensor([not self.texts[prompt].ended for prompt in self.prompts], device=rows.device)
        kept = going.nonzero()[:, 0]
        self.state.keep(kept)
        self.prompts = [self.prompts[row] for row in kept.tolist()]
        if self.codes:
            self.codes = [self.codes[row] for row in kept.tolist()]
        if self.drafts:
            self.drafts.keep(kept.tolist())
        still = going[rows]
        return (going.cumsum(0) - 1)[rows[still]], byte[still]
