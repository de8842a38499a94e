"""A text to one vector, and the vector to what the decoder reads.

A vector has two parts. The *carrier* has s numbers for each position of the longest text, made by a transformer that
reads the text in both directions; from it the text is decoded. The *memory* is a sum over the text's n-grams, of length
1, to which what was read before the text is added: see iteration.py.

Letters: M texts, W positions of the longest text, s numbers of a position, D memory width, d = W·s + D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from abstractinator.components.glae.config import EncoderConfig, GlaeConfig
from abstractinator.components.glae.texts import Texts
from abstractinator.components.sliding_window_attention import rotary_angles, rotate
from abstractinator.components.token_embedding import HISTORY
from abstractinator.components.token_hash import ngram_hashes, token_hash
from abstractinator.components.transformer import ResidualMLP, RMSNorm

MEMORY_NORM = 2.0
"""Length of a text's memory; that of its carrier is at most 1, so that what a text is about decides its cosines."""


_MOVE = 0.1  # of what the transformer adds to a point: at high learning rates it must not jump to another's place
_MOMENTUM = 0.05  # of the mean over texts
_OUTERMOST = 0.9  # of the grid of points, in each dimension


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention in which each position of a text sees all of its positions; positions are rotary."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: (M, W, width); seen: (M, 1, 1, W) bool, true on positions of the text → (M, W, width)."""
        qkv = rearrange(self.to_qkv(x), "m w (three h d) -> three m w h d", three=3, h=self.heads)
        angles = rotary_angles(torch.arange(x.shape[1], device=x.device)[:, None], qkv.shape[-1])
        q, k = rotate(qkv[0], angles), rotate(qkv[1], angles)
        q, k, v = (part.transpose(1, 2) for part in (q, k, qkv[2]))  # (M, h, W, d)
        # Two products: in bf16 on a CPU twice as fast as torch's SDPA, forward and backward.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        out = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
        return self.to_out(rearrange(out, "m h w d -> m w (h d)"))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.attention = BidirectionalAttention(config.width, config.heads)
        self.mlp = ResidualMLP(config.width, config.mlp_width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return self.mlp(x + self.attention(self.norm(x), seen))


class Carrier(nn.Module):
    """The numbers that carry a text's tokens: s for each position, between -1 and 1; 0 behind the text's end.

    An end token takes the position behind the text, where there is one, so that its length is carried, too. Each token
    has a learned point in s dimensions; the points begin on a grid, far from one another. The transformer moves it by
    what stands around it, at first not at all.
    """

    def __init__(self, config: GlaeConfig, vocab_size: int, end: int) -> None:
        super().__init__()
        self.end = end
        self.embedding = nn.Embedding(vocab_size, config.encoder.width)
        blocks = nn.ModuleList(EncoderBlock(config.encoder) for _ in range(config.encoder.layers))
        self.blocks = cast(Sequence[EncoderBlock], blocks)
        self.norm = RMSNorm(config.encoder.width)
        self.to_slots = nn.Linear(config.encoder.width, config.slot_width)
        self.codes = nn.Embedding(vocab_size, config.slot_width)

    @torch.no_grad()
    def initialize(self) -> None:
        """Points on a grid of as many equal steps in each dimension as all tokens need; no move."""
        count, width = self.codes.weight.shape
        levels = math.ceil(count ** (1 / width) - 1e-9)
        place = levels ** torch.arange(width, device=self.codes.weight.device)
        digits = torch.arange(count, device=self.codes.weight.device)[:, None] // place % levels
        self.codes.weight.copy_(torch.atanh(_OUTERMOST * (2 * digits / max(levels - 1, 1) - 1)))
        nn.init.zeros_(self.to_slots.weight)

    @property
    def points(self) -> Tensor:
        """(V + 1, s) where text tokens and, as the last one, the end lie when nothing moves them."""
        text = self.codes.weight[: self.end - 1]  # ids are V of text, BOS, EOS, PAD
        return torch.tanh(torch.cat([text, self.codes.weight[self.end : self.end + 1]]).float())

    def forward(self, texts: Texts) -> Tensor:
        """→ (M, W, s)."""
        ended, lengths = texts.with_end(self.end)
        inside = torch.arange(ended.shape[1], device=ended.device) < lengths[:, None]  # (M, W)
        x = self.embedding(ended)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x, inside[:, None, None, :])
        return torch.tanh(self.codes(ended).float() + _MOVE * self.to_slots(self.norm(x)).float()) * inside[:, :, None]


class NgramMemory(nn.Module):
    """What a text is about: a learned vector for each hashed n-gram, summed, mapped to D numbers, less the mean over
    texts, of length 1. Without the mean all texts of a language would be alike, by the n-grams that each has."""

    center: Tensor
    updates: Tensor

    def __init__(self, config: GlaeConfig) -> None:
        super().__init__()
        self.sizes, self.rows = tuple(sorted(set(config.ngram_sizes))), config.ngram_rows
        # One more row, which stays zero, for where no n-gram ends.
        self.ngrams = nn.EmbeddingBag(self.rows + 1, config.ngram_width, mode="sum", padding_idx=self.rows)
        self.to_memory = nn.Linear(config.ngram_width, config.memory_width, bias=False)
        self.register_buffer("center", torch.zeros(config.memory_width))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, texts: Texts) -> Tensor:
        """→ (M, D) fp32 of length 1; zeros for a text without tokens."""
        scale = texts.lengths.clamp(min=1)[:, None] ** -0.5
        summed = self.to_memory(self.ngrams(self.rows_of(texts))).float() * scale
        there = texts.lengths[:, None] > 0
        if self.training:
            self._follow(summed.detach(), there)
        return F.normalize((summed - self.center) * there, dim=-1)

    def _follow(self, summed: Tensor, there: Tensor) -> None:
        """The mean over texts follows that of a batch, quickly at first."""
        mean = (summed * there).sum(0) / there.sum().clamp(min=1)
        self.updates += 1
        self.center.lerp_(mean, torch.maximum(1 / self.updates, self.updates.new_tensor(_MOMENTUM)))

    def rows_of(self, texts: Texts) -> Tensor:
        """(M, W·G) rows of the table: those of the n-grams of the text's own tokens, and of its beginning."""
        hashes, width = token_hash(texts.ids[..., None]), texts.ids.shape[1]
        past = [F.pad(hashes, (back, 0), value=HISTORY)[:, :width] for back in range(max(self.sizes))]
        rows = ngram_hashes(torch.stack(past, dim=-1))[..., [size - 1 for size in self.sizes]] % self.rows
        return rows.masked_fill(~texts.inside[:, :, None], self.rows).flatten(1)


class TextEncoder(nn.Module):
    """A text to its vector: the carrier and the memory, one behind the other.

    The seed of this model reads a vector from the layer below the last one of a decoder, as the last layer is there to
    predict the next token. Here the encoder predicts nothing, so that the vector is read from its last layer.
    """

    def __init__(self, config: GlaeConfig, vocab_size: int, end: int) -> None:
        super().__init__()
        self.carrier = Carrier(config, vocab_size, end)
        self.memory = NgramMemory(config)

    def forward(self, texts: Texts) -> Tensor:
        """→ (M, d) fp32."""
        return joined(self.carrier(texts), self.memory(texts))


def joined(carrier: Tensor, memory: Tensor) -> Tensor:
    """(M, W, s) and (M, D) → (M, d) vectors, in which the carrier's length is at most 1, the memory's MEMORY_NORM."""
    flat = carrier.flatten(1)
    return torch.cat([flat * flat.shape[1] ** -0.5, memory * MEMORY_NORM], dim=1)


def taken_apart(vectors: Tensor, window: int, slot_width: int) -> tuple[Tensor, Tensor]:
    """(M, d) → what `joined` was given."""
    carried = window * slot_width
    flat, memory = vectors.float().split([carried, vectors.shape[1] - carried], dim=1)
    return (flat * carried**0.5).unflatten(1, (window, slot_width)), memory / MEMORY_NORM
