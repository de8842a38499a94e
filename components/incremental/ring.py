"""The memory of a text that goes on and on: for each row the last C entries, entry p in slot p mod C.

Taking entries back is forgetting that they were written: the reader counts, the ring does not.

Letters: B rows of the ring, R rows that are looked at, C slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def entry_index(rows: Tensor, positions: Tensor, slots: int) -> Tensor:
    """Rows (R,) and positions in them (R, …) → (R, …) where these lie in a ring of `slots` slots a row, all of its rows
    one behind the other."""
    return rows.view(-1, *[1] * (positions.dim() - 1)) * slots + positions % slots


@dataclass
class Ring:
    """data: (B, C, …)."""

    data: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """(R, C, …) all slots of some rows, given in ascending order; no copy where these are all rows."""
        return self.data if len(rows) == len(self.data) else self.data[rows]

    def write(self, entries: Tensor, values: Tensor) -> None:
        """entries: (…) different ones, as `entry_index` gives them; values: (…, …) of what the ring holds."""
        self.data.flatten(0, 1).index_copy_(0, entries.flatten(), values.flatten(0, entries.dim() - 1))

    def read(self, entries: Tensor) -> Tensor:
        """entries: (…) → (…, …) what was last written there."""
        return self.data.flatten(0, 1)[entries]

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these (R,), which become 0 … R - 1."""
        self.data = self.data[rows]


def ring_of(value: float, *shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Ring:
    """A ring (B, C, …) that holds `value` everywhere."""
    return Ring(torch.full(shape, value, device=device, dtype=dtype))
