"""Causal attention over the last W tokens of the same row, at a cost linear in the tokens.

One interface, several kernels, all equal to `naive_attention` (held by a test):

    flash_attention   CUDA with flash-attn installed: variable-length kernel with `window_size`
    flex_attention    CUDA without it: FlexAttention with a block mask
    block_attention   everywhere else: blocks of W queries against their own block and the one before

Letters: T packed tokens, H heads, d width of a head, W window (a token sees itself and W - 1 before it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from components.packing import Packing

Kernel = Callable[[Tensor, Tensor, Tensor, Packing, int], Tensor]


def naive_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
    """The definition, with a T×T mask: the reference of the tests. q, k, v: (T, H, d) → (T, H, d)."""
    distance = packing.positions[:, None] - packing.positions[None, :]
    same_row = packing.rows[:, None] == packing.rows[None, :]
    visible = same_row & (distance >= 0) & (distance < window)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def block_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
    """Blocks of W queries, each against its own and the previous block's keys. q, k, v: (T, H, d) → (T, H, d).

    Written as two batched products: for blocks this small, in bf16 on a CPU, torch's SDPA takes 3.5 times as long
    forward and backward (see notes.md).
    """
    total = len(q)
    pad = -total % window

    def blocks(x: Tensor) -> Tensor:  # (T, H, d) → (blocks, H, W, d)
        return rearrange(F.pad(x, (0, 0, 0, 0, 0, pad)), "(n w) h d -> n h w d", w=window)

    def with_previous(x: Tensor) -> Tensor:  # (blocks, H, W, d) → (blocks, H, 2W, d)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], x], dim=2)

    mask = _block_mask(packing, window, q.dtype)
    scores = blocks(q * q.shape[-1] ** -0.5) @ with_previous(blocks(k)).transpose(2, 3)
    out = (scores + mask).softmax(-1) @ with_previous(blocks(v))
    return rearrange(out, "n h w d -> (n w) h d")[:total]


def _block_mask(packing: Packing, window: int, dtype: torch.dtype) -> Tensor:
    """(blocks, 1, W, 2W) additive mask: the window, cut at row borders."""
    key = ("block", window, dtype)
    if key not in packing.attention_masks:
        pad = -packing.total % window
        # Padding counts as one more row, so that its queries see themselves and stay finite.
        rows = F.pad(packing.rows, (0, pad), value=-1).view(-1, window)
        previous = F.pad(rows, (0, 0, 1, 0), value=-2)[:-1]
        key_rows = torch.cat([previous, rows], dim=1)
        place = torch.arange(2 * window, device=rows.device)
        distance = place[window:, None] - place[None, :]
        visible = (rows[:, :, None] == key_rows[:, None, :]) & (distance >= 0) & (distance < window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=rows.device)
        packing.attention_masks[key] = mask.masked_fill_(~visible, float("-inf")).unsqueeze(1)
    return packing.attention_masks[key]


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex, dynamic=True)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
    """FlexAttention with a block mask; on CPU it runs uncompiled and forward only (a check, not a path)."""
    from torch.nn.attention import flex_attention as library

    key = ("flex", window)
    if key not in packing.attention_masks:
        rows = packing.rows

        def visible(b: Tensor, h: Tensor, query: Tensor, token: Tensor) -> Tensor:
            return (rows[query] == rows[token]) & (query >= token) & (query - token < window)

        packing.attention_masks[key] = library.create_block_mask(
            visible, None, None, packing.total, packing.total, device=str(q.device)
        )
    q, k, v = (rearrange(x, "t h d -> 1 h t d") for x in (q, k, v))
    flex: Any = _compiled_flex_attention() if q.is_cuda else library.flex_attention
    out = flex(q, k, v, block_mask=packing.attention_masks[key])
    return rearrange(out, "1 h t d -> t h d")


def flash_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
    """flash-attn's variable-length kernel (half precision, CUDA)."""
    from flash_attn import flash_attn_varlen_func

    lengths, longest = packing.cumulative_lengths, packing.longest
    half = q.dtype if q.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    out = flash_attn_varlen_func(
        q.to(half), k.to(half), v.to(half), lengths, lengths, longest, longest,
        causal=True, window_size=(window - 1, 0),
    )  # fmt: skip
    return out.to(q.dtype)


def kernel_for(device: torch.device) -> Kernel:
    """The kernel that is used on a device; its `__name__` is what the training log states."""
    if device.type != "cuda":
        return block_attention
    return flash_attention if importlib.util.find_spec("flash_attn") else flex_attention


@dataclass
class AttentionCache:
    """The last W keys and values of B rows, as a ring: token p of a row lies in slot p mod W.

    keys, values: (B, H, W, d); counts: (B,) tokens seen so far. Memory does not grow with the text.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor

    def fill(self, k: Tensor, v: Tensor, packing: Packing) -> None:
        """Takes over the last W keys and values (T, H, d) of each row, the cache being empty."""
        recent = packing.positions >= (packing.lengths - self.keys.shape[2])[packing.rows]
        rows, slots = packing.rows[recent], packing.positions[recent] % self.keys.shape[2]
        self.keys[rows, :, slots] = k[recent].to(self.keys.dtype)
        self.values[rows, :, slots] = v[recent].to(self.values.dtype)
        self.counts.copy_(packing.lengths)

    def forget_last(self) -> None:
        """Takes the last token of every row back; its slot held the one token that the next cannot see."""
        self.counts.sub_(1)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864). x: (T, H, d), positions: (T,)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class SlidingWindowAttention(nn.Module):
    """Multi-head causal self-attention in which a token sees the last `window` tokens of its own row.

    width: D, divided by `heads` into an even head width; window: W ≥ 1. Positions are rotary and counted
    from the start of the row, so neither other rows nor their order change a row's result.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, packing: Packing, cache: AttentionCache | None = None) -> Tensor:
        """x: (T, D) → (T, D). An empty `cache` given along is filled for `step` to go on from."""
        qkv = rearrange(self.to_qkv(x), "t (three h d) -> t three h d", three=3, h=self.heads)
        qk = rotate(qkv[:, :2].flatten(1, 2), packing.positions)  # (T, 2H, d)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, 2]
        if cache is not None:
            cache.fill(k, v, packing)
        out = kernel_for(x.device)(q, k, v, packing, self.window)
        return self.to_out(rearrange(out, "t h d -> t (h d)"))

    def step(self, x: Tensor, cache: AttentionCache, rows: Tensor) -> Tensor:
        """The next token of some rows. x: (R, D) for cache rows `rows` (R,) → (R, D); equals `forward`."""
        qkv = rearrange(self.to_qkv(x), "r (three h d) -> r three h d", three=3, h=self.heads)
        position = cache.counts[rows]
        qk = rotate(qkv[:, :2].flatten(1, 2), position)
        slot = position % self.window
        cache.keys[rows, :, slot] = qk[:, self.heads :].to(cache.keys.dtype)
        cache.values[rows, :, slot] = qkv[:, 2].to(cache.values.dtype)
        cache.counts[rows] = position + 1
        filled = torch.arange(self.window, device=x.device) <= position[:, None]  # (R, W)
        q = qk[:, : self.heads, None].to(cache.keys.dtype)  # (R, H, 1, d)
        out = F.scaled_dot_product_attention(q, cache.keys[rows], cache.values[rows], attn_mask=filled[:, None, None])
        return self.to_out(rearrange(out, "r h 1 d -> r (h d)").to(x.dtype))

    def empty_cache(self, rows: int, device: torch.device, dtype: torch.dtype) -> AttentionCache:
        """A cache for `rows` rows that have seen nothing."""
        shape = (rows, self.heads, self.window, self.to_out.in_features // self.heads)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return AttentionCache(keys, values, torch.zeros(rows, dtype=torch.int64, device=device))
