"""The settings of a generative language autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from abstractinator.components.token_embedding import check_at_least_one
from abstractinator.components.transformer import TransformerConfig
from abstractinator.contract.model import TRAINING_ONLY


@dataclass(frozen=True)
class EncoderConfig:
    """Size of the transformer that reads a text in both directions.

    width; layers: blocks; heads: attention heads; mlp_width: hidden width of the SwiGLU.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    mlp_width: int = 256

    def __post_init__(self) -> None:
        # The same conditions as those of any transformer here; the window is the longest text.
        TransformerConfig(self.width, self.layers, self.heads, 1, self.mlp_width)


@dataclass(frozen=True)
class GlaeConfig:
    """Sizes and losses of a Glae.

    embedding_width: d, numbers of a text's vector. memory_width: how many of them say what the text, and all that was
    read before it, is about; the others carry its tokens, the same number for each of the W positions of the longest
    text. ngram_sizes: lengths in tokens of the n-grams that the memory sums, in a table of ngram_rows × ngram_width.
    encoder: text to vector. decoder: vector to text, and the language model; its window is W, the longest text that a
    vector carries and the tokens that are read beside a vector. decoder_ngram_*: of the decoder's input tokens.

    uniformity: "tcr", the total coding rate, or "infonce", the repulsive part of InfoNCE; uniformity_weight weighs it
    against nats a token. tcr_epsilon: ε, the distortion of the coding rate. temperature: τ of InfoNCE, also of
    attraction_weight's term, which draws the memories of neighbouring texts together. language_weight: of the language
    model against the reconstruction. noise: standard deviation of what is added in training to the numbers between -1
    and 1 that carry tokens, so that rounding in storage does no harm.
    """

    kind: Literal["glae"] = "glae"
    embedding_width: int = 512
    memory_width: int = 128
    ngram_sizes: tuple[int, ...] = (3, 4, 5)
    ngram_rows: int = 24_576
    ngram_width: int = 64
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=192, layers=3, heads=4, window=128, mlp_width=384)
    )
    decoder_ngram_sizes: tuple[int, ...] = (2, 3, 4, 5)
    decoder_ngram_rows: int = 24_576
    decoder_ngram_width: int = 32
    uniformity: Literal["tcr", "infonce"] = field(default="tcr", metadata=TRAINING_ONLY)
    uniformity_weight: float = field(default=3.0, metadata=TRAINING_ONLY)
    tcr_epsilon: float = field(default=0.5, metadata=TRAINING_ONLY)
    temperature: float = field(default=0.07, metadata=TRAINING_ONLY)
    attraction_weight: float = field(default=1.0, metadata=TRAINING_ONLY)
    language_weight: float = field(default=1.0, metadata=TRAINING_ONLY)
    noise: float = field(default=0.03, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        check_at_least_one(
            self,
            "embedding_width",
            "memory_width",
            "ngram_sizes",
            "ngram_rows",
            "ngram_width",
            "decoder_ngram_sizes",
            "decoder_ngram_rows",
            "decoder_ngram_width",
        )
        if not self.ngram_sizes or not self.decoder_ngram_sizes:
            raise ValueError("ngram_sizes and decoder_ngram_sizes need at least one size each")
        if self.decoder.layers < 1:
            raise ValueError("decoder.layers must be at least 1, not 0")
        carrying = self.embedding_width - self.memory_width
        if carrying < self.window or carrying % self.window:
            raise ValueError(
                f"embedding_width - memory_width ({self.embedding_width} - {self.memory_width}) must be a multiple of "
                f"decoder.window ({self.window}): each token of the longest text gets as many numbers"
            )
        if self.uniformity not in ("tcr", "infonce"):
            raise ValueError(f"uniformity must be tcr or infonce, not {self.uniformity!r}")
        for name in ("tcr_epsilon", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("uniformity_weight", "attraction_weight", "language_weight", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, and finite, not {getattr(self, name)}")

    @property
    def window(self) -> int:
        """W."""
        return self.decoder.window

    @property
    def slot_width(self) -> int:
        """Numbers of the vector for each token."""
        return (self.embedding_width - self.memory_width) // self.window
