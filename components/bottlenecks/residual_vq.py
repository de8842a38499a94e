"""Residual vector quantization (SoundStream, Zeghidour et al. 2021, arXiv 2107.03312)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.codebooks import CodebookQuantizer, EMACodebook, straight_through
from abstractinator.components.bottlenecks.vector_quantizer import Quantized
from abstractinator.components.bottlenecks.vq import RunningMeansConfig


@dataclass(frozen=True)
class ResidualVQConfig(RunningMeansConfig):
    kind: Literal["residual_vq"] = "residual_vq"


class ResidualVQ(CodebookQuantizer):
    """Q codebooks on the whole width, each quantizing what the ones before it left."""

    def __init__(self, config: ResidualVQConfig, width: int) -> None:
        books = [
            EMACodebook(config.codebook_size, width, config.decay, config.revive_after)
            for _ in range(config.codes_per_segment)
        ]
        super().__init__(config, width, [*books], config.commitment)

    def quantize(self, z: Tensor) -> Quantized:
        left, total, indices = z, torch.zeros_like(z), []
        for book in self.codebooks:
            index, code = book(left)
            left, total = left - code.detach(), total + code
            indices.append(index)
        return Quantized(straight_through(z, total), torch.stack(indices, dim=1), self.loss_of(z, total))

    def vectors_of(self, codes: Tensor) -> Tensor:
        return torch.stack([book.of(codes[:, q]) for q, book in enumerate(self.codebooks)]).sum(0)
