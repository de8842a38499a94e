"""The memory of a text that goes on and on: for each row the last C entries, entry p in slot p mod C.

Taking entries back is forgetting that they were written: the reader counts, the ring does not.

Letters: B rows of the ring, R rows that are looked at, C slots, n entries a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Ring:
    """data: (B, C, …)."""

    data: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """(R, C, …) all slots of some rows, given in ascending order; no copy where these are all rows."""
        return self.data if len(rows) == len(self.data) else self.data[rows]

    def write(self, rows: Tensor, positions: Tensor, values: Tensor) -> None:
        """rows: (R,), positions: (R, n), values: (R, n, …). Positions of a row differ by less than C."""
        self.data[rows[:, None], positions % self.data.shape[1]] = values.to(self.data.dtype)

    def read(self, rows: Tensor, positions: Tensor) -> Tensor:
        """rows: (R,), positions: (R, …) → (R, …, …): what was last written there."""
        rows = rows.view(-1, *[1] * (positions.dim() - 1))
        return self.data[rows, positions % self.data.shape[1]]

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these (R,), which become 0 … R - 1."""
        self.data = self.data[rows]


def ring_of(value: float, *shape: int, device: torch.device, dtype: torch.dtype) -> Ring:
    """A ring (B, C, …) that holds `value` everywhere."""
    return Ring(torch.full(shape, value, device=device, dtype=dtype))
