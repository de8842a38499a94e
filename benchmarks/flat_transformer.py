"""A flat byte transformer with full causal attention, which generates byte by byte with a KV cache of C positions.

Letters: B rows, N tokens a row, H heads, d width of a head, D width, C positions of the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from abstractinator.components.token_head import IGNORED
from abstractinator.components.transformer import ResidualMLP, RMSNorm
from abstractinator.contract.byte_tokenizer import ByteTokenizer

_HEAD_WIDTH = 64


@dataclass(frozen=True)
class FlatConfig:
    """width: D. heads must divide it into even head widths. mlp_width: None for 8/3 of the width."""

    kind: Literal["flat"] = "flat"
    width: int = 256
    layers: int = 4
    heads: int = 4
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1:
            raise ValueError(f"width, layers and heads must be at least 1: {self}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width}) into even head widths")


@dataclass
class FlatCache:
    """Keys and values of the last C positions of B rows, one (B, H, C, d) each a layer, as a ring; rows go in step.

    count: positions seen so far.
    """

    keys: list[Tensor]
    values: list[Tensor]
    count: int = 0


class FullAttention(nn.Module):
    """Multi-head causal self-attention over the whole row, by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """x: (B, N, D), angles: cosines and sines (N, d/2) → (B, N, D)."""
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        out = F.scaled_dot_product_attention(rotated(q, angles), rotated(k, angles), v, is_causal=True)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def step(self, x: Tensor, angles: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, count: int) -> Tensor:
        """x: (B, D), the position after `count` others, angles (1, d/2) → (B, D); writes to keys and values."""
        q, k, v = self.to_qkv(x).view(len(x), 3, self.heads, 1, -1).unbind(1)  # (B, H, 1, d)
        slot, seen = count % keys.shape[2], min(count + 1, keys.shape[2])
        keys[:, :, slot], values[:, :, slot] = rotated(k, angles)[:, :, 0], v[:, :, 0]
        out = F.scaled_dot_product_attention(rotated(q, angles), keys[:, :, :seen], values[:, :, :seen])
        return self.to_out(out.flatten(1))


def rotary_angles(length: int, head_width: int, like: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, d/2) of the rotary positions from `first` on (Su et al. 2021), once for all layers, in
    the type of `like`."""
    half = head_width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=like.device, dtype=torch.float32) / half)
    angles = torch.arange(first, first + length, device=like.device)[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x: (B, H, N, d) turned by its positions; `rotate` of components, with the angles given."""
    cos, sin = angles
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class FlatBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.attention = FullAttention(width, heads)
        self.mlp = ResidualMLP(width, mlp_width)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x), angles))

    def step(self, x: Tensor, angles: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, count: int) -> Tensor:
        return self.mlp(x + self.attention.step(self.norm(x), angles, keys, values, count))


class FlatByteTransformer(nn.Module):
    """p(next byte | all bytes of the row before it), one position a byte: RoPE, SwiGLU, RMSNorm before each part."""

    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        mlp_width = config.mlp_width or _mlp_width(width)
        self.embedding = nn.Embedding(ByteTokenizer.vocab_size, width)
        self.blocks = nn.ModuleList(FlatBlock(width, config.heads, mlp_width) for _ in range(config.layers))
        self.norm = RMSNorm(width)
        self.to_logits = nn.Linear(width, ByteTokenizer.vocab_size, bias=False)
        self.apply(_initialize)
        for block in self.blocks:  # each block begins as the identity
            nn.init.zeros_(block.attention.to_out.weight)
            nn.init.zeros_(block.mlp.mlp.to_out.weight)

    @classmethod
    def sized(cls, parameters: int) -> FlatByteTransformer:
        """A model of `parameters` ± 3 %, about 64 times as wide as deep.

        Raises ValueError where there is none.
        """
        return cls(flat_config(parameters))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, N) byte ids → mean nats over the predicted bytes."""
        nats, bytes_ = self.score(rows)
        return nats / max(bytes_, 1)

    def score(self, rows: Tensor) -> tuple[Tensor, int]:
        """(B, N) byte ids → the sum of −log p, and over how many bytes.

        As in HierarchicalAELM: a row's first token, BOS and PAD are not scored; the nats of EOS count,
        but EOS is not a byte.
        """
        targets = rows[:, 1:]
        unscored = (targets == ByteTokenizer.BOS) | (targets == ByteTokenizer.PAD)
        logits = self.logits(rows[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(unscored, IGNORED).flatten(), reduction="sum")
        return nats, int((targets < ByteTokenizer.text_size).sum())

    def logits(self, rows: Tensor) -> Tensor:
        """(B, N) byte ids → (B, N, 259) of the byte after each, fp32."""
        x = self.embedding(rows)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # a half-width residual stream, as in components
        angles = rotary_angles(rows.shape[1], self.config.width // self.config.heads, x)
        for block in self.blocks:
            x = block(x, angles)
        return self.to_logits(self.norm(x)).float()

    def empty_cache(self, rows: int, context: int) -> FlatCache:
        """A cache of `context` positions for `rows` rows that have seen nothing."""
        config = self.config
        shape = (rows, config.heads, context, config.width // config.heads)
        like = self.norm.gain
        return FlatCache(*([like.new_zeros(shape) for _ in self.blocks] for _ in range(2)))

    @torch.no_grad()
    def step(self, byte: Tensor, cache: FlatCache) -> Tensor:
        """One more byte of every row (B,) → (B, 259) logits of the next; equals `logits` while the cache lasts."""
        x = self.embedding(byte)
        angles = rotary_angles(1, self.config.width // self.config.heads, x, cache.count)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block.step(x, angles, keys, values, cache.count)
        cache.count += 1
        return self.to_logits(self.norm(x)).float()


def _mlp_width(width: int) -> int:
    return max(16, round(width * 8 / 3 / 16) * 16)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def flat_config(parameters: int) -> FlatConfig:
    """The size of a model with `parameters` ± 3 %: see FlatByteTransformer.sized.

    Width and depth are chosen for their proportion, then the hidden width of the SwiGLU, within 1.5 … 5
    times the width, for the number. Raises ValueError where no size fits.
    """
    fitting: list[tuple[float, FlatConfig]] = []
    for width in [*range(16, 128, 16), *range(128, 4097, _HEAD_WIDTH)]:
        heads = max(1, width // _HEAD_WIDTH)
        for depth in range(1, 65):
            outside = 2 * width * ByteTokenizer.vocab_size + width
            in_block = (parameters - outside) / depth - 4 * width**2 - 2 * width
            hidden = round(in_block / (3 * width) / 8) * 8
            total = outside + depth * (4 * width**2 + 2 * width + 3 * width * hidden)
            if not 1.5 * width <= hidden <= 5 * width or abs(total / parameters - 1) > 0.03:
                continue
            proportion = abs(math.log(width / depth / _HEAD_WIDTH)) + abs(math.log(hidden / width * 3 / 8))
            fitting.append((proportion, FlatConfig("flat", width, depth, heads, hidden)))
    if not fitting:
        raise ValueError(f"no flat transformer of about {parameters:,} parameters; ask for 20,000 or more")
    return min(fitting, key=lambda item: item[0])[1]
