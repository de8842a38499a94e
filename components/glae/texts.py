"""Texts as rows of token ids, at most W each.

Letters: B rows of a batch, N ids a row, K texts of a row, M texts, W tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.contract.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """ids: (M, W) int64 tokens of text, anything behind a text's end. lengths: (M,) tokens, from 0 to W."""

    ids: Tensor
    lengths: Tensor

    @cached_property
    def inside(self) -> Tensor:
        """(M, W) bool, true on tokens of the text."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def with_end(self, end: int) -> tuple[Tensor, Tensor]:
        """(M, W) ids with `end` behind each text, and everywhere else behind it, and (M,) lengths with one such token,
        where there is room for it."""
        return torch.where(self.inside, self.ids, end), (self.lengths + 1).clamp(max=self.ids.shape[1])

    def of(self, index: Tensor) -> Texts:
        """Some of the texts."""
        return Texts(self.ids[index], self.lengths[index])

    def beginnings(self, lengths: Tensor) -> Texts:
        """The first `lengths` (M,) tokens of each."""
        return Texts(self.ids, torch.minimum(self.lengths, lengths))


def texts_of(rows: Sequence[Sequence[int]], window: int, device: torch.device) -> Texts:
    """Token ids of each text, at most W, which may be none."""
    ids = torch.zeros(len(rows), window, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return Texts(ids.to(device), torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device))


def cut_rows(ids: Tensor, window: int, tokenizer: Tokenizer) -> Texts:
    """Rows (B, N) of BOS, text, EOS, PAD … → B·K texts of at most W tokens, the K = ⌈(N - 2) / W⌉ of each row one
    behind the other; the last ones of a short row are empty."""
    inner = ids[:, 1:-1]
    inner = F.pad(inner, (0, -inner.shape[1] % window), value=tokenizer.PAD).reshape(-1, window)
    is_text = inner < tokenizer.text_size
    return Texts(torch.where(is_text, inner, 0), is_text.sum(1))
