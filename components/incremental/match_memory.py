"""The match model for tokens that come a few at a time.

Letters: B rows of the memory, R rows that take a step, n tokens a row, K sizes, Q slots of a token, C ring entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abstractinator.components.incremental.ring import Ring, entry_index, ring_of
from abstractinator.components.match_model import MatchModel


class MatchMemory:
    """The last tokens of B rows, in which a match for the next one is searched.

    ahead: how many tokens come, or are rolled back, at most at once.
    """

    def __init__(self, model: MatchModel, rows: int, ahead: int, device: torch.device) -> None:
        self.model, self.slots = model, model.window + ahead
        # A ring for each size: comparing is most of the work, and is fast where a ring lies in one piece.
        self.hashes = [ring_of(0, rows, self.slots, device=device, dtype=torch.int64) for _ in model.sizes]
        self.ids = ring_of(0, rows, self.slots, model.vocabulary.slots, device=device, dtype=torch.int64)
        # Turned by p slots it says how near each slot is to the token in slot p: slots less the distance; 0 beyond the
        # window, with tokens that were rolled back or come later in the same step.
        distance = -torch.arange(2 * self.slots, device=device, dtype=torch.int32) % self.slots
        near = torch.where((distance > 0) & (distance <= model.window), self.slots - distance, 0)
        self.nearness = near.unfold(0, self.slots, 1)

    def rings(self) -> list[Ring]:
        """All that rows are kept in."""
        return [*self.hashes, self.ids]

    def append(self, rows: Tensor, positions: Tensor, ids: Tensor, ngrams: Tensor) -> Tensor:
        """Appends tokens (R, n, Q) at positions (R, n), with ngrams (R, n, reach) → (R, n, K, Q), `followers` of
        each."""
        entries = entry_index(rows, positions, self.slots)
        self.ids.write(entries, ids)
        turns = (self.slots - positions % self.slots).flatten()
        nearness = self.nearness.index_select(0, turns).view(*positions.shape, self.slots)  # (R, n, C)
        nearest = []
        for ring, size in zip(self.hashes, self.model.sizes, strict=True):
            keys = ngrams[..., size - 1]
            ring.write(entries, keys)
            equal = ring.of(rows)[:, None] == keys[..., None]
            nearest.append((equal * nearness).amax(-1))
        near = torch.stack(nearest, dim=-1)  # (R, n, K), 0 without a match
        after = positions[..., None] + 1 - (self.slots - near)
        found = self.ids.read(entry_index(rows, after, self.slots))
        return torch.where(near[..., None] > 0, found, self.model.no_match)
