"""What every quantizer offers: vectors to codes and back. One class a kind:

    fsq.py           finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505); no codebook to collapse
    vq.py            codebooks moved by running means (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)
    residual_vq.py   the same, each codebook quantizing what the ones before it left (SoundStream, arXiv 2107.03312)
    simvq.py         frozen codebooks seen through a learned linear map (Zhu et al. 2024, arXiv 2411.02038)

Everything here runs in fp32: in bf16 a running mean with decay 0.99 stands still, and indices of one vector
differ from machine to machine.

Letters: S vectors, D width, Q codes a vector, K codes in a codebook, M neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class QuantizerSettings(Protocol):
    """What the settings of every kind have. codes_per_segment: Q. codebook_size: K of each codebook."""

    @property
    def kind(self) -> str: ...

    @property
    def codes_per_segment(self) -> int: ...

    @property
    def codebook_size(self) -> int: ...


@dataclass(frozen=True)
class Quantized:
    """vectors: (S, D) with gradients to the input. codes: (S, Q) int64. loss: scalar of the quantizer's own.

    lattice: (S, Q·N) for fsq the rounded numbers, N a code, with gradients to what was rounded; otherwise None.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor
    lattice: Tensor | None = None


class VectorQuantizer(nn.Module, ABC):
    """Quantizes (S, D) vectors to (S, Q) codes."""

    def __init__(self, config: QuantizerSettings, width: int) -> None:
        super().__init__()
        self.settings, self.width = config, width

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.settings.codebook_size

    def forward(self, z: Tensor) -> Quantized:
        """z: (S, D), packed valid vectors (there is no mask: padding is never a vector). S may be 0."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if not len(z):
                empty = torch.zeros(0, self.settings.codes_per_segment, dtype=torch.int64, device=z.device)
                return Quantized(z, empty, z.sum())
            return self.quantize(z)

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """`forward` of at least one vector, in fp32."""

    @abstractmethod
    def vectors_of(self, codes: Tensor) -> Tensor:
        """`decode`, in fp32."""

    @abstractmethod
    def beside(self, codes: Tensor, slot: int) -> Tensor:
        """(S,) codes of one slot → (S, N) those next to each."""

    def encode(self, z: Tensor) -> Tensor:
        """z: (S, D) → codes (S, Q); changes no state."""
        was_training = self.training
        try:
            return self.eval()(z).codes
        finally:
            self.train(was_training)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (S, Q) → the quantized vectors (S, D) that `forward` gave with them."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.vectors_of(codes)

    @torch.no_grad()
    def part(self, slot: int) -> Tensor:
        """(K, D): `decode` of codes is the sum over slots of the one of that slot's code."""
        size, device = self.codebook_size, next(self.buffers()).device
        codes = torch.zeros(size, self.settings.codes_per_segment, dtype=torch.int64, device=device)
        codes[:, slot] = torch.arange(size, device=device)
        vectors = self.decode(codes)
        return vectors - vectors[:1] if slot else vectors

    @torch.no_grad()
    def neighbours(self, codes: Tensor) -> Tensor:
        """codes: (S, Q) → (S, M, Q): what lies next to them. One slot of each differs: for fsq by one step in one
        dimension (at its last value it stays), for the others it is one of the nearest codes of that codebook."""
        with torch.autocast(codes.device.type, enabled=False):
            changed = [self.beside(codes[:, slot], slot) for slot in range(codes.shape[1])]  # (S, M / Q) each
        out = [codes[:, None].repeat(1, beside.shape[1], 1) for beside in changed]
        for slot, beside in enumerate(changed):
            out[slot][:, :, slot] = beside
        return torch.cat(out, dim=1)


def check_sizes(config: QuantizerSettings) -> None:
    """Raises ValueError for sizes that no kind can have."""
    if config.codes_per_segment < 1:
        raise ValueError(f"codes_per_segment must be at least 1, not {config.codes_per_segment}")
    if config.codebook_size < 2:
        raise ValueError(f"codebook_size must be at least 2, not {config.codebook_size}")
