"""Codebooks: K code vectors, and which of them is nearest; and what the quantizers with codebooks have in common.

Letters: S vectors, D width, K codes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.bottlenecks.nearest_code import nearest_code
from abstractinator.components.bottlenecks.vector_quantizer import Quantized, QuantizerSettings, VectorQuantizer

_NEAREST = 8  # codes of a codebook that count as neighbours of one


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The quantized value forward; its gradient to z (Bengio et al. 2013), and to the codes where they learn."""
    return quantized + (z - z.detach())


class EMACodebook(nn.Module):
    """K code vectors that are running means of the vectors assigned to them, with revival of dead codes."""

    codes: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, size: int, width: int, decay: float, revive_after: float) -> None:
        super().__init__()
        self.decay, self.revive_after = decay, revive_after
        codes = torch.randn(size, width) * width**-0.5
        self.register_buffer("codes", codes)
        # Count 1 for each initial vector: with 0, the first division would blow codes up.
        self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (S, D) → indices (S,), codes (S, D); in training the codebook moves to z."""
        if self.training and len(z) and not self.started:
            self._start(z.detach())
        indices = nearest_code(z, self.codes)
        chosen = self.codes[indices]
        if self.training and len(z):
            self._move(z.detach(), indices)
        return indices, chosen

    def of(self, indices: Tensor) -> Tensor:
        """(…) indices → (…, D) codes."""
        return self.codes[indices]

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        """Begins at vectors of the first batch, which lie where the data lies."""
        picks = torch.randint(len(z), (len(self.codes),), device=z.device)
        noise = self.sums.normal_()  # its own values come last, so no further K×D array is needed
        torch.index_select(z.to(self.codes.dtype), 0, picks, out=self.codes)
        self.codes.add_(noise, alpha=float(z.std()) * 0.01 if z.numel() > 1 else 0.0)
        self.sums.copy_(self.codes)
        self.started.fill_(True)

    @torch.no_grad()
    def _move(self, z: Tensor, indices: Tensor) -> None:
        # Index-add in place: no S×K one-hot matrix and no second K×D array.
        keep = 1 - self.decay
        self.counts.mul_(self.decay).index_add_(0, indices, torch.ones_like(z[:, 0]), alpha=keep)
        self.sums.mul_(self.decay).index_add_(0, indices, z.to(self.sums.dtype), alpha=keep)
        torch.div(self.sums, self.counts.clamp(min=1e-6)[:, None], out=self.codes)
        dead = self.counts < self.revive_after * len(z) / len(self.codes)
        if self.revive_after and dead.any():
            self._revive(dead, z)

    def _revive(self, dead: Tensor, z: Tensor) -> None:
        """Moves dead codes onto vectors of the batch, with the count of an evenly used code."""
        slots = dead.nonzero()[:, 0]
        picks = torch.randint(len(z), (len(slots),), device=z.device)
        even = max(len(z) / len(self.codes), 1e-3)
        self.counts[slots] = even
        for slot, pick in zip(slots.split(4096), picks.split(4096), strict=True):  # all K may be dead at once
            vectors = z[pick].to(self.codes.dtype)
            self.codes[slot], self.sums[slot] = vectors, vectors * even


class FrozenCodebook(nn.Module):
    """SimVQ: K fixed random vectors through one learned linear map, so that every code moves with each step."""

    basis: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(size, width) * width**-0.5)
        self.map = nn.Linear(width, width, bias=False)

    @property
    def codes(self) -> Tensor:
        return self.map(self.basis)

    def of(self, indices: Tensor) -> Tensor:
        """(…) indices → (…, D) codes."""
        return self.map(self.basis[indices])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (S, D) → indices (S,), codes (S, D) with gradients to the map."""
        indices = nearest_code(z, self.codes.detach())
        return indices, self.of(indices)


Codebook = EMACodebook | FrozenCodebook


class CodebookQuantizer(VectorQuantizer):
    """A quantizer with a codebook for each code. commitment: weight of ‖z − sg(code)‖² in the loss."""

    codebooks: Sequence[Codebook]

    def __init__(self, config: QuantizerSettings, width: int, books: list[Codebook], commitment: float) -> None:
        super().__init__(config, width)
        self.codebooks = cast(Sequence[Codebook], nn.ModuleList(books))
        self.commitment = commitment

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized: ...

    def beside(self, codes: Tensor, slot: int) -> Tensor:
        book = self.codebooks[slot].codes
        count = min(_NEAREST + 1, len(book))
        parts = [  # rows are few, codes may be many
            torch.cdist(book[part], book).topk(count, largest=False).indices[:, 1:] for part in codes.split(256)
        ]
        return torch.cat(parts)

    def loss_of(self, z: Tensor, quantized: Tensor) -> Tensor:
        """What keeps the vectors near their codes."""
        return self.commitment * F.mse_loss(z, quantized.detach())


class SplitQuantizer(CodebookQuantizer):
    """Splits a vector into Q parts, each with a codebook of its own."""

    def quantize(self, z: Tensor) -> Quantized:
        parts = z.chunk(len(self.codebooks), dim=1)
        indices, codes = zip(*(book(part) for book, part in zip(self.codebooks, parts, strict=True)), strict=True)
        quantized = torch.cat(codes, dim=1)
        return Quantized(straight_through(z, quantized), torch.stack(indices, dim=1), self.loss_of(z, quantized))

    def vectors_of(self, codes: Tensor) -> Tensor:
        return torch.cat([book.of(codes[:, q]) for q, book in enumerate(self.codebooks)], dim=1)


def part_width(config: QuantizerSettings, width: int) -> int:
    """The width of each of Q parts. Raises ValueError where the width cannot be split."""
    if width % config.codes_per_segment:
        raise ValueError(f"codes_per_segment ({config.codes_per_segment}) must divide the quantizer's width ({width})")
    return width // config.codes_per_segment
