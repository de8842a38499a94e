"""SimVQ: frozen codebooks seen through a learned linear map (Zhu et al. 2024, arXiv 2411.02038)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.bottlenecks.codebooks import FrozenCodebook, SplitQuantizer, part_width
from abstractinator.components.bottlenecks.vector_quantizer import check_sizes
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class SimVQConfig:
    """codes_per_segment: Q. codebook_size: K of each codebook. commitment: weight of ‖z − sg(code)‖² in the loss."""

    kind: Literal["simvq"] = "simvq"
    codes_per_segment: int = 3
    codebook_size: int = 256
    commitment: float = field(default=0.25, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.commitment < 0:
            raise ValueError(f"commitment must be 0 or more, not {self.commitment}")


class SimVQ(SplitQuantizer):
    """Each of Q parts of a vector becomes the nearest code of a codebook that moves as a whole."""

    def __init__(self, config: SimVQConfig, width: int) -> None:
        part = part_width(config, width)
        books = [FrozenCodebook(config.codebook_size, part) for _ in range(config.codes_per_segment)]
        super().__init__(config, width, [*books], config.commitment)

    def loss_of(self, z: Tensor, quantized: Tensor) -> Tensor:
        return super().loss_of(z, quantized) + F.mse_loss(quantized, z.detach())
