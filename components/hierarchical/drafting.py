"""How the text may continue, for `speculative`: the plan of the open segment of the top level.

A draft is a guess. The text is the one of `exact` with any guess; a good one saves steps.

Letters: R rows, M candidates, C width of a context, Q codes a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.hierarchical.incremental_model import IncrementalModel
from abstractinator.components.hierarchical.plan import decode_codes

CANDIDATES = 8
LONGEST = 8  # bytes of a draft
MIN_GAIN = 2.0  # bytes that a plan must save to pay for itself, about
PATIENCE = 16  # segments after which a plan is tried again where the last ones did not pay
ROWS = 4  # texts that are drafted together; more of them share each step, so that saving steps of one saves no time


@dataclass
class _Plan:
    """Of one row: what its open segment may be, and whether plans pay there.

    codes: top codes read when this was made. candidates: how the text may continue, empty without a plan.
    since: how it continued. saved: bytes that were guessed right. gain: running mean of `saved` over the plans before.
    waited: segments since the last plan.
    """

    codes: int = -1
    candidates: list[bytes] = field(default_factory=list)
    since: bytearray = field(default_factory=bytearray)
    saved: int = 0
    gain: float = MIN_GAIN
    waited: int = 0

    def next(self, codes: int) -> _Plan:
        """That of the next segment, with no candidates yet."""
        if not self.candidates:
            return _Plan(codes, gain=self.gain, waited=self.waited + 1)
        return _Plan(codes, gain=0.75 * self.gain + 0.25 * self.saved)

    @property
    def pays(self) -> bool:
        return self.gain >= MIN_GAIN or self.waited >= PATIENCE


class Drafts:
    """Drafts for the texts of an IncrementalModel, at most ROWS of them, planned once a segment of the top level, where
    that pays."""

    def __init__(self, model: Hierarchy, state: IncrementalModel, rows: int) -> None:
        self.model, self.state = model, state
        self.plans = [_Plan() for _ in range(rows)]
        self.candidates = min(CANDIDATES, model.top.vocabulary.codebook_size)

    @property
    def rests(self) -> bool:
        """Whether the texts are too many for drafts to pay."""
        return len(self.plans) > ROWS

    def keep(self, rows: list[int]) -> None:
        """Follows IncrementalModel.keep."""
        self.plans = [self.plans[row] for row in rows]

    def propose(self, rows: Tensor, upcoming: list[int]) -> list[bytes]:
        """What may come behind the text of each row (R,) and one more byte that was not read yet."""
        if self.rests:
            return [b""] * len(rows)
        numbers, codes = rows.tolist(), self.state.top.counts[rows].tolist()
        new = {row: count for row, count in zip(numbers, codes, strict=True) if self.plans[row].codes != count}
        for row, count in new.items():
            self.plans[row] = self.plans[row].next(count)
        if paying := [row for row in new if self.plans[row].pays]:
            self._plan(torch.tensor(paying, device=rows.device))
        return [self._draft(self.plans[row], byte) for row, byte in zip(numbers, upcoming, strict=True)]

    def accept(self, row: int, byte: int, guess: bytes) -> None:
        """The byte was read, and of the guess behind it this part was right."""
        if self.rests:
            return
        plan = self.plans[row]
        plan.since += bytes([byte]) + guess
        plan.saved += len(guess)

    def _draft(self, plan: _Plan, byte: int) -> bytes:
        begin = bytes([*plan.since, byte])
        fitting = (text for text in plan.candidates if text.startswith(begin) and len(text) > len(begin))
        return next(fitting, b"")[len(begin) :][:LONGEST]

    def _plan(self, rows: Tensor) -> None:
        count = self.candidates
        context = self.state.top.upcoming(rows)
        codes = self._probable_codes(context)  # (R·M, Q)
        opened = self.state.open_tokens(rows).repeat_interleave(count, 0)
        drafted, lengths = decode_codes(self.model, codes[:, None], torch.ones_like(codes[:, 0]), opened)
        texts = [bytes(text[:length]) for text, length in zip(drafted.tolist(), lengths.tolist(), strict=True)]
        for i, row in enumerate(rows.tolist()):
            self.plans[row].candidates = list(dict.fromkeys(texts[i * count : (i + 1) * count]))

    def _probable_codes(self, context: Tensor) -> Tensor:
        """(R, C) → (R·M, Q): with each of the M most probable first slots, the most probable further ones."""
        head, vocabulary = self.state.code_head, self.model.top.vocabulary
        empty = torch.zeros(len(context), 0, dtype=torch.int64, device=context.device)
        first = head.slot_logits(context, empty)[:, : vocabulary.codebook_size].topk(self.candidates).indices
        ids, context = first.flatten()[:, None], context.repeat_interleave(self.candidates, 0)
        for _ in range(1, vocabulary.slots):
            ids = torch.cat([ids, head.slot_logits(context, ids).argmax(-1, keepdim=True)], dim=1)
        return ids
