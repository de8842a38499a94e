"""Settings of the kinds `calm` and `calm_discrete`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from abstractinator.components.token_embedding import check_at_least_one
from abstractinator.components.transformer import TransformerConfig
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class ChunkAutoencoderConfig:
    """width, mlp_width: of its blocks. latent_width: d, numbers in the vector of a chunk.

    latent_dropout: of the latent in training. token_dropout: share of the tokens that the encoder does not see in
    training. kl_weight: of KL(q‖p), in nats, in the loss. kl_floor: nats; a dimension that carries less than this is
    not pressed any further, or most of them would carry nothing.
    """

    width: int = 128
    mlp_width: int = 256
    latent_width: int = 128
    latent_dropout: float = field(default=0.15, metadata=TRAINING_ONLY)
    token_dropout: float = field(default=0.15, metadata=TRAINING_ONLY)
    kl_weight: float = field(default=1e-3, metadata=TRAINING_ONLY)
    kl_floor: float = field(default=0.5, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_at_least_one(self, "width", "mlp_width", "latent_width")
        for name in ("latent_dropout", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("kl_weight", "kl_floor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True)
class EnergyHeadConfig:
    """width, blocks, mlp_width: of its residual blocks. noise_width: numbers of noise that a sample is made from.

    samples: N, of the model, and targets: M, of the posterior, in the loss of a chunk. exponent: α of the loss.
    """

    width: int = 128
    blocks: int = 4
    mlp_width: int = 128
    noise_width: int = 64
    samples: int = field(default=8, metadata=TRAINING_ONLY)
    targets: int = field(default=100, metadata=TRAINING_ONLY)
    exponent: float = field(default=1.0, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_at_least_one(self, "width", "blocks", "mlp_width", "noise_width", "targets")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, as they are compared with each other, not {self.samples}")
        if not 0 < self.exponent < 2:
            raise ValueError(f"exponent must lie between 0 and 2, or the loss has no one minimum; not {self.exponent}")


@dataclass(frozen=True)
class TokenHeadConfig:
    """width, blocks, mlp_width: of the residual blocks that predict a chunk's tokens one after the other."""

    width: int = 256
    blocks: int = 2
    mlp_width: int = 512

    def __post_init__(self) -> None:
        check_at_least_one(self, "width", "blocks", "mlp_width")


@dataclass(frozen=True)
class ChunkModelConfig:
    """chunk_size: K, tokens that are predicted at each step. embedding_width: of a token that the model reads.
    transformer: of chunks; its window counts chunks."""

    chunk_size: int = 4
    embedding_width: int = 64
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=256, layers=3, heads=4, window=128, mlp_width=704)
    )

    def __post_init__(self) -> None:
        check_at_least_one(self, "chunk_size", "embedding_width")


@dataclass(frozen=True)
class CALMConfig(ChunkModelConfig):
    """autoencoder, head: its parts. autoencoder_fraction: share of the training, the first part, that trains the
    autoencoder alone; after it the autoencoder stays as it is."""

    kind: Literal["calm"] = "calm"
    autoencoder: ChunkAutoencoderConfig = field(default_factory=ChunkAutoencoderConfig)
    head: EnergyHeadConfig = field(default_factory=EnergyHeadConfig)
    autoencoder_fraction: float = field(default=0.2, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.autoencoder_fraction < 1:
            raise ValueError(
                f"autoencoder_fraction must lie between 0 and 1, not {self.autoencoder_fraction}: a language model "
                "of latents needs an autoencoder, and an autoencoder alone predicts nothing"
            )


@dataclass(frozen=True)
class CALMDiscreteConfig(ChunkModelConfig):
    """head: of tokens, in place of an autoencoder and a head of latents."""

    kind: Literal["calm_discrete"] = "calm_discrete"
    head: TokenHeadConfig = field(default_factory=TokenHeadConfig)
