"""The stack of levels: levels of compressors and expanders with one transformer on top.

    bytes ─▶ compressor ─▶ codes¹ ─▶ compressor ─▶ codes² … ─▶ CodeSequenceTransformer ─▶ next code, context
      ▲                      ▲                                      │                        │
      └───── expander ───────┴───── expander ───────────────────────┘ decompress             │
      └───── expander ───────┴───── expander ────────────────────────────────────────────────┘ predict

Letters: B rows, N bytes a row, T packed bytes, S packed segments of a level, D width, Q codes a segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from abstractinator.components.hierarchical.byte_segment_compressor import Compressed
from abstractinator.components.hierarchical.code_sequence_transformer import (
    CodeSequenceTransformer,
    TopTransformerConfig,
)
from abstractinator.components.hierarchical.level import Level, LevelConfig
from abstractinator.components.sliding_window_attention import SlidingWindowAttention
from abstractinator.components.token_head import DepthHead
from abstractinator.components.tokens import BYTES, Tokens, pack_texts
from abstractinator.components.transformer import GroupedLinear, SwiGLU
from abstractinator.contract.model import TRAINING_ONLY, Model


@dataclass(frozen=True)
class ModelConfig:
    """levels: from the bytes up.

    autoencoder_fraction: share of the training, the first part, that trains bytes → codes → bytes alone. Its steps cost
    a third of the others, and the language model then learns over codes that hardly change.

    The loss weights multiply losses in nats; the quantizers' own losses, squared distances, are added as they are (see
    QuantizerConfig.commitment). rate_loss_weight: of the cost of the highest codes in what makes them (see losses.py),
    for quantizers of kind fsq. repetition_weight: a segment that occurs n times in a batch weighs n to this power in
    the reconstruction loss; parts of segments (segment_parts.py) weigh 1.
    """

    kind: Literal["hier_ae"] = "hier_ae"
    levels: tuple[LevelConfig, ...] = (LevelConfig(),)
    top_transformer_config: TopTransformerConfig = field(default_factory=TopTransformerConfig)
    autoencoder_fraction: float = field(default=0.5, metadata=TRAINING_ONLY)
    predict_loss_weight: float = field(default=1.0, metadata=TRAINING_ONLY)
    reconstruction_loss_weight: float = field(default=2.0, metadata=TRAINING_ONLY)
    top_lm_loss_weight: float = field(default=0.6, metadata=TRAINING_ONLY)
    rate_loss_weight: float = field(default=0.3, metadata=TRAINING_ONLY)
    aux_lm_loss_weight: float = field(default=1.0, metadata=TRAINING_ONLY)
    repetition_weight: float = field(default=0.5, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; a model has at least one level")
        if not 0 <= self.autoencoder_fraction < 1:
            raise ValueError(f"autoencoder_fraction must lie in [0, 1), not {self.autoencoder_fraction}")
        for name, value in vars(self).items():
            if name.endswith("_weight") and value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")


@dataclass(frozen=True)
class Decompressed:
    """tokens: the bytes, T of them, packed. code: (T,) index of the highest code that each came from."""

    tokens: Tokens
    code: Tensor


class Hierarchy(Model):
    """The parts of a HierarchicalAutoencoder and the three ways through them: compress, decompress, predict."""

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        top_width = config.top_transformer_config.transformer.width
        vocabulary, vector_width, levels = BYTES, 0, []
        for i, level in enumerate(config.levels):
            above = config.levels[i + 1].expander.predictor.width if i + 1 < len(config.levels) else top_width
            levels.append(Level(level, vocabulary, vector_width, above))
            vocabulary, vector_width = levels[-1].compressor.code_vocabulary, level.compressor.width
        self.levels = cast(Sequence[Level], nn.ModuleList(levels))
        self.top = CodeSequenceTransformer(config.top_transformer_config, vocabulary, vector_width)
        self.byte_head = DepthHead(config.levels[0].expander.predictor.width, BYTES)
        self.apply(_initialize)

    def compress(self, tokens: Tokens | bytes | list[bytes], *, repair: bool = False) -> list[Compressed]:
        """A text, several, or packed bytes (see `pack_bytes`) → what each level makes of them, from the lowest up.

        repair: whether codes are verified by decoding, and repaired: for codes that `decompress` will read. The
        language model reads the encoder's own codes, on which it was trained.
        """
        if not isinstance(tokens, Tokens):
            tokens = pack_texts(tokens).to(self.device)
        self.check_precision()
        out: list[Compressed] = []
        for level in self.levels:
            out.append(level.compress(tokens, repair=repair))
            tokens = out[-1].codes
        return out

    @torch.no_grad()
    def decompress(self, codes: Tokens) -> Decompressed:
        """The highest codes → bytes, greedily, all of a level at once.

        Only `codes.ids` is read. Special codes become the special tokens that they stand for. Raises ValueError for an
        id that is no code.
        """
        self.check_precision()
        tokens, code = codes, torch.arange(codes.packing.total, device=codes.ids.device)
        for level in reversed(self.levels):
            tokens, of_token = level.decompress(tokens)
            code = code[of_token]
        return Decompressed(tokens, code)

    def predict(self, tokens: Tokens, compressed: list[Compressed]) -> tuple[Tensor, list[Tensor]]:
        """The exact way down → hidden vectors (T, D) before each byte, and per level the contexts (S, C) before
        each of its segments, made from what came before the segment."""
        lower = [tokens, *(c.codes for c in compressed)]
        contexts = [self.top(lower[-1])]
        for i in reversed(range(len(self.levels))):
            contexts.insert(0, self.levels[i].expander.predict(contexts[0], lower[i], compressed[i].segments))
        return contexts[0], contexts[1:]

    @property
    def target_bytes_per_code(self) -> float:
        """Bytes that a highest code stands for, about."""
        targets = (level.compressor.segmentation.target_tokens_per_code for level in self.config.levels)
        return math.prod(targets)

    def check_precision(self) -> None:
        """Raises ValueError for weights that are not in fp32, in which codes are the same everywhere."""
        if self.top.start.dtype != torch.float32:
            raise ValueError(
                f"the weights are {self.top.start.dtype}: keep them in float32 (model.float()); under torch.autocast "
                "the products are in bfloat16 where that is faster"
            )

    @property
    def bits_per_code(self) -> float:
        """What a highest code takes when stored plainly: Q log₂ K."""
        return self.top.vocabulary.slots * math.log2(self.top.vocabulary.codebook_size)


def _initialize(module: nn.Module) -> None:
    """Matrices at 1/√fan-in, embeddings small, so that all parts of a sum begin alike; what blocks add, at zero."""
    if isinstance(module, SwiGLU | SlidingWindowAttention):
        nn.init.zeros_(module.to_out.weight)  # after its own turn, as children come first
    elif isinstance(module, GroupedLinear):
        module.initialize()
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        nn.init.normal_(module.weight, std=0.1)
