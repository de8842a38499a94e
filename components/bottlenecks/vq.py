"""Vector quantization with running means (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from abstractinator.components.bottlenecks.codebooks import EMACodebook, SplitQuantizer, part_width
from abstractinator.components.bottlenecks.vector_quantizer import check_sizes
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class RunningMeansConfig:
    """codes_per_segment: Q. codebook_size: K of each codebook.

    decay: of the running means. commitment: weight of ‖z − sg(code)‖² in the loss. revive_after: a code that was chosen
    by less than this share of an even split of the vectors, as a running mean, is moved onto a vector of the batch; 0
    switches it off.
    """

    kind: str = ""
    codes_per_segment: int = 3
    codebook_size: int = 256
    decay: float = field(default=0.99, metadata=TRAINING_ONLY)
    commitment: float = field(default=0.25, metadata=TRAINING_ONLY)
    revive_after: float = field(default=0.05, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_sizes(self)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")
        if self.commitment < 0:
            raise ValueError(f"commitment must be 0 or more, not {self.commitment}")
        if not 0 <= self.revive_after < 1:
            raise ValueError(f"revive_after must lie in [0, 1), not {self.revive_after}")


@dataclass(frozen=True)
class VQConfig(RunningMeansConfig):
    kind: Literal["vq"] = "vq"


class VQ(SplitQuantizer):
    """Each of Q parts of a vector becomes the nearest code of a codebook of running means."""

    def __init__(self, config: VQConfig, width: int) -> None:
        part = part_width(config, width)
        books = [
            EMACodebook(config.codebook_size, part, config.decay, config.revive_after)
            for _ in range(config.codes_per_segment)
        ]
        super().__init__(config, width, [*books], config.commitment)
