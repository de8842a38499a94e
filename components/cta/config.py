"""The settings of the kind `cta`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from abstractinator.components.token_embedding import check_at_least_one
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class CTAConfig:
    """width: channels at the rate of tokens; each halving of the rate doubles them. ratio: tokens a latent, a power of
    two. blocks: residual blocks at each rate but the lowest, which has one. latent_width: numbers of a latent.
    kl_weight: of the mean divergence of a number from the standard normal, beside the mean cross-entropy of a token.
    """

    kind: Literal["cta"] = "cta"
    width: int = 108
    ratio: int = 4
    blocks: int = 1
    latent_width: int = 4
    kl_weight: float = field(default=1e-6, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_at_least_one(self, "width", "blocks", "latent_width")
        if self.ratio < 2 or self.ratio & (self.ratio - 1):
            raise ValueError(f"ratio must be a power of two from 2 on (2, 4, 8, …), not {self.ratio}")
        if self.ratio > 1 << 10:
            raise ValueError(f"ratio must be at most 1024, not {self.ratio}")
        if not 0 <= self.kl_weight < float("inf"):
            raise ValueError(f"kl_weight must be 0 or more, and finite, not {self.kl_weight}")

    @property
    def halvings(self) -> int:
        """Strided convolutions: log₂ ratio."""
        return self.ratio.bit_length() - 1
