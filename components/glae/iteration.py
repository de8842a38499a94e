"""Vectors of text without end: E_t = Embed([E_{t-1}; the next W tokens]).

The carrier of E_t is that of the W tokens; its memory is λ · memory(E_{t-1}) + memory(the W tokens), with a learned λ
between 0 and 1 for each number. So a vector takes the same room after any length of text, stays finite, and those of a
row can be computed all at once in training. It is a diagonal linear recurrence, as in state space models (Gu et al.
2022, arXiv 2111.00396), in place of the seed's second pass through the whole model.

Letters: B rows, K texts of a row, D memory width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrence(nn.Module):
    """s_k = λ s_{k-1} + f_k."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1.0, 3.0, width))

    @property
    def decay(self) -> Tensor:
        """λ: (D,)."""
        return torch.sigmoid(self.logits.float())

    def step(self, state: Tensor, new: Tensor) -> Tensor:
        """(…, D) s_{k-1} and f_k → s_k."""
        return self.decay * state + new

    def forward(self, new: Tensor) -> Tensor:
        """(B, K, D) f_1 … f_K, from s_0 = 0 → s_1 … s_K, in log₂ K rounds that double the reach of each sum."""
        reach, decay = 1, self.decay
        while reach < new.shape[1]:
            new = new + decay**reach * F.pad(new, (0, 0, reach, 0))[:, : new.shape[1]]
            reach *= 2
        return new
