"""The one transformer that every part is made of: pre-norm blocks of windowed attention and SwiGLU.

Letters: T packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.packing import Packing
from abstractinator.components.sliding_window_attention import SlidingWindowAttention


@dataclass(frozen=True)
class TransformerConfig:
    """Size of a SlidingWindowTransformer.

    width: D. layers: blocks, 0 for none. heads: attention heads; width / heads must be even.
    window: tokens that a token sees in one layer, itself included. mlp_width: hidden width of the SwiGLU.
    """

    width: int = 256
    layers: int = 2
    heads: int = 4
    window: int = 64
    mlp_width: int = 768

    def __post_init__(self) -> None:
        for name in ("width", "heads", "window", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.layers < 0:
            raise ValueError(f"layers must be at least 0, not {self.layers}")
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if self.head_width % 2:
            raise ValueError(f"width / heads is {self.head_width}; rotary positions need it to be even")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019) with a learned gain, in the precision of its input."""

    epsilon = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # torch's own module takes a slow path when weight and input differ in type, as under autocast.
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), self.epsilon)


class GroupedLinear(nn.Linear):
    """A linear map that begins by reading, for the i-th part of its outputs, only the i-th part of its inputs.

    Inputs and outputs count as `groups` parts side by side (the positions of a segment, say). The map may
    mix them later; it starts where each part has a way through, from which learning is much faster.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.groups = groups

    @torch.no_grad()
    def initialize(self) -> None:
        """Normal weights of variance groups / in_features within the groups, zero elsewhere."""
        reads = torch.arange(self.in_features) * self.groups // self.in_features
        writes = torch.arange(self.out_features) * self.groups // self.out_features
        nn.init.normal_(self.weight, std=(self.groups / self.in_features) ** 0.5)
        self.weight.mul_(writes[:, None] == reads[None, :])
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SwiGLU(nn.Module):
    """Gated feed-forward block (Shazeer 2020, arXiv 2002.05202): width → 2 × hidden → width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(width, 2 * hidden, bias=False)
        self.to_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.to_hidden(x).chunk(2, dim=-1)
        return self.to_out(F.silu(gate) * value)


class ResidualMLP(nn.Module):
    """x + SwiGLU(norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.attention = SlidingWindowAttention(config.width, config.heads, config.window)
        self.mlp = ResidualMLP(config.width, config.mlp_width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x), packing))


class SlidingWindowTransformer(nn.Module):
    """Causal transformer over packed rows, x (T, D) → (T, D), normed at the end.

    Position t sees positions t, t-1, … of its row alone.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.blocks = cast(Sequence[TransformerBlock], blocks)
        self.norm = RMSNorm(config.width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # a half-width residual stream
        for block in self.blocks:
            x = block(x, packing)
        return self.norm(x)
