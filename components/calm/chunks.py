"""Rows of token ids as chunks of K tokens, documents apart.

A document is filled up with PAD before its BOS, so it begins with a chunk of its own and ends where a chunk ends.

Letters: B rows, N token ids a row, S packed chunks, K tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abstractinator.components.packing import Packing
from abstractinator.contract.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunks:
    """ids: (S, K) int64. packing: the sequences of chunks; each is a document, or the part of one that a row holds."""

    ids: Tensor
    packing: Packing

    @property
    def follows(self) -> Tensor:
        """(S,) bool: whether a chunk comes after another one of its sequence."""
        return self.packing.positions > 0


def chunks_of(rows: Tensor, size: int, tokenizer: Tokenizer) -> Chunks:
    """(B, N) ids, N a multiple of K → their chunks without those that only fill up a row."""
    chunks = rows.view(len(rows), -1, size)  # (B, N / K, K)
    begins = (chunks == tokenizer.BOS).any(-1)
    begins[:, 0] = True
    kept = (chunks != tokenizer.PAD).any(-1)
    first = begins[kept].nonzero()[:, 0]
    ends = torch.cat([first[1:], first.new_tensor([int(kept.sum())])]) if len(first) else first
    return Chunks(chunks[kept], Packing.from_lengths(ends - first))


def fill_before(ids: list[int], size: int, tokenizer: Tokenizer) -> list[list[int]]:
    """The chunks of tokens, the first one filled up with PAD in front."""
    whole = [tokenizer.PAD] * (-len(ids) % size) + ids
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def after_bos(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """(S, K) ids → (S, K) bool: text and ends. What stands up to a BOS only fills up the chunk."""
    from_bos = (ids == tokenizer.BOS).flip(-1).long().cumsum(-1).flip(-1) > 0
    return ~from_bos & (ids != tokenizer.PAD)
