"""SlidingWindowTransformer for tokens that come a few at a time, with a cache of the ones before.

Keys and values lie in rings of the window and some slots more, so that several tokens can be written at once, and
rolled back by writing others at their positions. Memory does not grow with the text.

Letters: B rows of the memory, R rows that take a step, n tokens a row, T = R·n, C slots, H heads, d width of a head,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.incremental.folded import FoldedMLP, FoldedNorm, transposed
from abstractinator.components.incremental.ring import Ring, ring_of
from abstractinator.components.sliding_window_attention import rotary_frequencies
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerBlock


@dataclass(frozen=True)
class CacheEntries:
    """Where the next n tokens of R rows go, and what they see: the same for all layers.

    rows: (R,) ascending. slots: (R, n, 2·H) of keys and of values, in the rings of all rows, one behind the other.
    mask: (R, 1, n, C) to be added to the scores. turns: (R, n, 3·H, d/2) rotary positions as complex numbers; values
    are not turned.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor
    turns: Tensor

    def each(self) -> list[CacheEntries]:
        """Those of the n tokens of each row one by one, for as many steps."""
        parts = zip(self.slots.split(1, 1), self.mask.split(1, 2), self.turns.split(1, 1), strict=True)
        return [CacheEntries(self.rows, *part) for part in parts]


class IncrementalTransformer:
    """The tokens read so far of B rows, each beginning empty, for steps of up to `ahead` tokens."""

    def __init__(self, transformer: SlidingWindowTransformer, rows: int, ahead: int) -> None:
        self.config, self.slots = transformer.config, transformer.config.window + ahead
        self.blocks = [_IncrementalBlock(block, rows, self.slots) for block in transformer.blocks]
        self.norm = FoldedNorm(transformer.norm)
        device, heads = self.norm.gain.device, self.config.heads
        self._slot = torch.arange(self.slots, device=device)
        self._first_slot = torch.arange(2 * heads, device=device) * self.slots  # of each head's keys, then values
        self._one, self._barred = torch.ones((), device=device), torch.tensor(float("-inf"), device=device)
        turns = torch.arange(3 * heads, device=device) < 2 * heads
        self._frequencies = turns[:, None] * rotary_frequencies(self.config.head_width, device)  # (3·H, d/2)

    def rings(self) -> list[Ring]:
        return [block.ring for block in self.blocks]

    def step(self, x: Tensor, entries: CacheEntries) -> Tensor:
        """x: (R, n, D), tokens at consecutive entries → (R, n, D).

        n ≤ `ahead`. What was written at these entries or after them before, at most `ahead` tokens, is forgotten; with
        that, it equals `forward` of the whole rows.
        """
        flat = x.flatten(0, 1).float()
        for block in self.blocks:
            flat = block.step(flat, entries)
        return self.norm(flat).view(x.shape)

    def entries(self, rows: Tensor, positions: Tensor) -> CacheEntries:
        """Those of consecutive positions (R, n) of the rows (R,), ascending.

        For one step C ≥ window + n - 1 (n ≤ `ahead`), so that what the tokens overwrite is out of sight of all of them:
        seen from a token, slots of later tokens, and of those rolled back, are those of tokens almost C entries before
        it. Taken one by one (`CacheEntries.each`), they may be any number.
        """
        each = positions.unsqueeze(-1)  # (R, n, 1)
        distance = (each - self._slot).remainder_(self.slots)  # (R, n, C)
        seen = each.clamp(max=self.config.window - 1)  # tokens before; a row's first tokens have fewer
        mask = torch.where(distance <= seen, 0.0, self._barred).unsqueeze(1)
        turns = torch.polar(self._one, positions[:, :, None, None] * self._frequencies)
        first = rows.view(-1, 1, 1) * (2 * self.config.heads * self.slots) + each % self.slots
        return CacheEntries(rows, first + self._first_slot, mask, turns)


class _IncrementalBlock:
    """TransformerBlock with its keys and values: a ring (B, 2·H·C, d), a head's slots side by side, as attention is
    several times as fast so."""

    @torch.no_grad()
    def __init__(self, block: TransformerBlock, rows: int, slots: int) -> None:
        attention, self.norm = block.attention, FoldedNorm(block.norm)
        self.heads, self.head_width = attention.heads, attention.head_width
        self.to_qkv = self.norm.matrix(_with_pairs(attention.to_qkv.weight, self.head_width))
        self.to_out = transposed(attention.to_out.weight)
        self.mlp = FoldedMLP(block.mlp)
        self.ring = ring_of(0.0, rows, slots, self.head_width, parts=2 * self.heads, device=self.to_out.device)

    def step(self, x: Tensor, entries: CacheEntries) -> Tensor:
        """(T, D) → (T, D)."""
        pairs = torch.view_as_complex((self.norm.unit(x) @ self.to_qkv).view(*entries.turns.shape, 2))
        turned = torch.view_as_real(pairs * entries.turns).flatten(3)  # (R, n, 3·H, d)
        q, new = turned.split([self.heads, 2 * self.heads], dim=2)
        self.ring.write(entries.slots, new)
        ring = self.ring.of(entries.rows).view(len(q), 2 * self.heads, -1, self.head_width)
        keys, values = ring.chunk(2, dim=1)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=entries.mask)
        return self.mlp(torch.addmm(x, out.transpose(1, 2).reshape(x.shape), self.to_out))


def _with_pairs(weight: Tensor, head_width: int) -> Tensor:
    """The weight (3·D, D) of queries, keys and values, such that the two numbers of q and k which are turned together
    lie side by side. `rotate` has them half a head apart; products of q and k are the same either way."""
    qk, v = weight.split([len(weight) * 2 // 3, len(weight) // 3])
    halves = qk.view(-1, 2, head_width // 2, weight.shape[1])
    return torch.cat([halves.transpose(1, 2).reshape(qk.shape), v])
