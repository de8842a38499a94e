"""Residual vector quantization (SoundStream, Zeghidour et al. 2021, arXiv 2107.03312)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.codebooks import CodebookQuantizer, EMACodebook, straight_through
from abstractinator.components.bottlenecks.vector_quantizer import Quantized, check_sizes
from abstractinator.components.bottlenecks.vq import check_running_means
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class ResidualVQConfig:
    """codes_per_segment: Q. codebook_size: K of each codebook.

    decay: of the running means. commitment: weight of ‖z − sg(code)‖² in the loss. revive_after: a code that was chosen
    by less than this share of an even split of the vectors, as a running mean, is moved onto a vector of the batch; 0
    switches it off.
    """

    kind: Literal["residual_vq"] = "residual_vq"
    codes_per_segment: int = 3
    codebook_size: int = 256
    decay: float = field(default=0.99, metadata=TRAINING_ONLY)
    commitment: float = field(default=0.25, metadata=TRAINING_ONLY)
    revive_after: float = field(default=0.05, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_sizes(self)
        check_running_means(self.decay, self.commitment, self.revive_after)


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
