"""Tokens that come a few at a time, as the `step` functions read them.

Letters: R rows that take a step, n tokens a row, Q slots of a token, K match sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NextTokens:
    """n more tokens of each of R rows, as the `step` functions take them.

    rows: (R,) ascending. positions: (R, n) in their rows, consecutive. entries: (R, n) of these in the rings of a
    Memory, see `entry_index`. after: (R, n) the same for the positions after them. ids: (R, n, Q). ngrams: (R, n,
    reach) hashes of the 1-gram, 2-gram, … that end at each. matches: (R, n, K, Q) see MatchModel.followers, None where
    no match model is used.
    """

    rows: Tensor
    positions: Tensor
    entries: Tensor
    after: Tensor
    ids: Tensor
    ngrams: Tensor
    matches: Tensor | None = None

    def of(self, index: Tensor) -> NextTokens:
        """Those of some of the rows, by their indices."""
        parts = (self.rows, self.positions, self.entries, self.after, self.ids, self.ngrams, self.matches)
        return NextTokens(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]
