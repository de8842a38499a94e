"""The memory of a text of any length: for each row the last C entries, entry p in slot p mod C.

Rolling back is forgetting that entries were written: the reader counts, the ring does not.

Letters: B rows of the ring, R rows that are read, C slots, P parts that each have C slots of their own.
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
    """data: (B, P·C, …), the slots of a part side by side. slots: C."""

    data: Tensor
    slots: int

    def of(self, rows: Tensor) -> Tensor:
        """(R, P·C, …) all slots of some rows, given in ascending order; no copy where these are all rows."""
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

    def copy_last(self, other: Ring, newest: Tensor) -> None:
        """Takes over the entries up to `newest` (B,) of a ring of the same rows with at least as many slots."""
        positions = newest[:, None] - torch.arange(self.slots, device=newest.device)  # (B, C)
        rows = torch.arange(len(newest), device=newest.device)[:, None]
        mine, theirs = (ring.data.view(len(newest), -1, ring.slots, *ring.data.shape[2:]) for ring in (self, other))
        mine[rows, :, positions % self.slots] = theirs[rows, :, positions % other.slots]


def ring_of(
    value: float,
    rows: int,
    slots: int,
    *shape: int,
    parts: int = 1,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Ring:
    """A ring (B, P·C, …) that holds `value` everywhere."""
    return Ring(torch.full((rows, parts * slots, *shape), value, device=device, dtype=dtype), slots)
