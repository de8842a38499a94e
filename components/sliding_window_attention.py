"""Causal attention over the last W tokens of the same row, at a cost linear in the tokens.

One interface, several kernels, all equal to `naive_attention` (held by a test):

    flash_attention   CUDA in half precision with flash-attn installed: variable-length kernel with `window_size`
    flex_attention    CUDA otherwise, so always in fp32: FlexAttention with a block mask
    block_attention   everywhere else: blocks of W queries against their own block and the one before

Letters: T packed tokens, H heads, d width of a head, W window (a token sees itself and W - 1 before it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from abstractinator.components.packing import Packing

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
        index = torch.arange(2 * window, device=rows.device)
        distance = index[window:, None] - index[None, :]
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
        packing.attention_masks[key] = _flex_mask(packing, window)
    q, k, v = (rearrange(x, "t h d -> 1 h t d") for x in (q, k, v))
    flex: Any = _compiled_flex_attention() if q.is_cuda else library.flex_attention
    out = flex(q, k, v, block_mask=packing.attention_masks[key])
    return rearrange(out, "1 h t d -> t h d")


def _flex_mask(packing: Packing, window: int) -> Any:
    """BlockMask of the window, made from arithmetic: torch's create_block_mask would make a T×T mask first.

    A block of 128 queries has the blocks from its first query's farthest key to its own.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rows, size = packing.rows, 128

    def visible(b: Tensor, h: Tensor, query: Tensor, token: Tensor) -> Tensor:
        return (rows[query] == rows[token]) & (query >= token) & (query - token < window)

    own = torch.arange(-(-packing.total // size), device=rows.device)
    first = (own * size - window + 1).clamp(min=0) // size
    counts = own - first + 1
    reached = (first[:, None] + own) % max(len(own), 1)  # those that count come first in each line
    return BlockMask.from_kv_blocks(
        counts.to(torch.int32)[None, None],
        reached.to(torch.int32)[None, None],
        BLOCK_SIZE=size,
        mask_mod=visible,
        seq_lengths=(packing.total, packing.total),
    )


def flash_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
    """flash-attn's variable-length kernel (half precision, CUDA)."""
    from flash_attn import flash_attn_varlen_func

    lengths, longest = packing.cumulative_lengths, packing.longest
    out: Tensor = flash_attn_varlen_func(
        q, k, v, lengths, lengths, longest, longest, causal=True, window_size=(window - 1, 0)
    )
    return out


@cache
def kernel_for(device_type: str, dtype: torch.dtype) -> Kernel:
    """The kernel that is used for tensors of a type on a device; its `__name__` is what the training log states.

    fp32 stays fp32: what is computed in it, the entropies, is compared with a threshold to the last bits.
    """
    if device_type != "cuda":
        return block_attention
    half = dtype in (torch.float16, torch.bfloat16)
    return flash_attention if half and importlib.util.find_spec("flash_attn") else flex_attention


def rotary_angles(positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) → their cosines and sines (…, d/2)."""
    angles = positions[..., None] * rotary_frequencies(head_width, positions.device)
    return angles.cos(), angles.sin()


@cache
def rotary_frequencies(head_width: int, device: torch.device) -> Tensor:
    """(d/2,) by how much each pair of numbers turns from one position to the next, in radians."""
    half = head_width // 2
    with torch.inference_mode(False):  # what is cached must serve training, too
        return 10_000.0 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x: (…, H, d) turned by the angles of its positions, (…, 1, d/2)."""
    cos, sin = (part.to(x.dtype) for part in angles)
    a, b = x.chunk(2, dim=-1)
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

    @property
    def head_width(self) -> int:
        return self.to_out.in_features // self.heads

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x: (T, D) → (T, D)."""
        qkv = rearrange(self.to_qkv(x), "t (three h d) -> t three h d", three=3, h=self.heads)
        angles = rotary_angles(packing.positions[:, None], self.head_width)
        qk = rotate(qkv[:, :2].flatten(1, 2), angles)  # (T, 2H, d)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, 2]
        out = kernel_for(q.device.type, q.dtype)(q, k, v, packing, self.window)
        return self.to_out(rearrange(out, "t h d -> t (h d)"))
