"""Rows of unequal length laid end to end: the layout in which every module here works.

B rows with lengths n_1 … n_B become one sequence of T = Σ n_b tokens. There is no padding, so none can
enter a loss, a codebook or a metric, and a batch of unequal rows costs what its tokens cost.

Letters: B rows, T tokens of all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where each row lies in the packed sequence.

    lengths: (B,) int64, tokens in each row; a row may be empty.
    rows: (T,) int64, the row of each token.
    positions: (T,) int64, the position of each token in its row, from 0.
    """

    lengths: Tensor
    rows: Tensor
    positions: Tensor

    @classmethod
    def from_lengths(cls, lengths: Tensor) -> Packing:
        """Packing of rows with the given lengths (B,)."""
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        offsets = lengths.cumsum(0) - lengths
        return cls(lengths, rows, torch.arange(len(rows), device=lengths.device) - offsets[rows])

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packing:
        """Packing of the tokens of a padded batch; mask (B, N) is true on tokens, which come first in a row."""
        return cls.from_lengths(mask.sum(1))

    @cached_property
    def offsets(self) -> Tensor:
        """(B,) where each row begins in the packed sequence."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """(B + 1,) int32, as flash-attn's variable-length kernels take it."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def longest(self) -> int:
        """Length of the longest row."""
        return int(self.lengths.max()) if len(self.lengths) else 0

    @cached_property
    def attention_masks(self) -> dict[object, Any]:
        """Masks that the attention kernels made for this packing, shared by all layers that use it."""
        return {}

    @property
    def total(self) -> int:
        """T, the number of tokens of all rows."""
        return len(self.rows)

    def shift(self, x: Tensor, first: Tensor) -> Tensor:
        """Moves every row of x (T, …) one position to the right; `first` (…) fills each row's first position.

        At position t is then what was known before token t: the step from "after" to "before" on
        which causality rests, in this one function.
        """
        shifted = torch.cat([first.to(x.dtype).expand(1, *x.shape[1:]), x[:-1]]) if self.total else x
        is_first = (self.positions == 0).view(-1, *[1] * (x.dim() - 1))
        return torch.where(is_first, first.to(x.dtype), shifted)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] for whole numbers `index`, with a gradient that is the same each time on a CPU.

    In the backward pass of x[index] several threads sum the gradients of a row that was taken several times, in any
    order.
    """
    return x.index_select(0, index)
