"""Passages as rows of a byte model, and logits as scores: for every kind that predicts the next byte.

Letters: P passages, C scored bytes of all passages together, N byte ids a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.tokens import BYTES
from abstractinator.contract.capabilities import Passage, Score

CLASSES = BYTES.codebook_size + 1
"""The bytes and, as the last class, the end of the text."""


def ids_of(passage: Passage) -> list[int]:
    """What the model reads."""
    return [BYTES.bos] * passage.begins + [*passage.context, *passage.continuation]


def first_scored(passage: Passage) -> int:
    """The position of the first scored byte among `ids_of`."""
    return passage.begins + len(passage.context)


def padded_rows(passages: Sequence[Passage], device: torch.device) -> Tensor:
    """(P, N) ids, PAD at the ends of rows."""
    longest = max(map(len, passages))
    rows = [ids_of(passage) + [BYTES.pad] * (longest - len(passage)) for passage in passages]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def scored_positions(passages: Sequence[Passage], device: torch.device) -> tuple[Tensor, Tensor]:
    """(C,) the row of every scored byte and its position there."""
    counts = torch.tensor([len(passage.continuation) for passage in passages])
    rows = torch.repeat_interleave(torch.arange(len(passages)), counts)
    firsts = torch.tensor([first_scored(passage) for passage in passages])
    positions = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows] + firsts[rows]
    return rows.to(device), positions.to(device)


def scores_from_logits(logits: Tensor, passages: Sequence[Passage]) -> list[Score]:
    """logits: (C, 257), of every scored byte in the order of the passages → a Score for each passage."""
    targets = torch.tensor([byte for passage in passages for byte in passage.continuation], device=logits.device)
    counts = [len(passage.continuation) for passage in passages]
    nll = F.cross_entropy(logits.float(), targets, reduction="none").double().split(counts)
    greedy = (logits.argmax(-1) == targets).split(counts)
    return [Score(float(n.sum()), bool(g.all())) for n, g in zip(nll, greedy, strict=True)]
