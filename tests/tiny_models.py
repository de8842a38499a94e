"""Small models and texts that several test files share."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from abstractinator.components.bottlenecks.fsq import FSQConfig
from abstractinator.components.bottlenecks.kinds import QuantizerConfig
from abstractinator.components.bottlenecks.residual_vq import ResidualVQConfig
from abstractinator.components.bottlenecks.simvq import SimVQConfig
from abstractinator.components.bottlenecks.vq import VQConfig
from abstractinator.components.hierarchical.byte_segment_compressor import CompressorConfig
from abstractinator.components.hierarchical.code_expander import ExpanderConfig
from abstractinator.components.hierarchical.code_sequence_transformer import TopTransformerConfig
from abstractinator.components.hierarchical.entropy_model import EntropyModelConfig
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchical_autoencoder import EVERYTHING
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.hierarchical.level import LevelConfig
from abstractinator.components.hierarchical.losses import HierarchicalLosses
from abstractinator.components.hierarchical.segmentation import SegmentationConfig
from abstractinator.components.sliding_window_attention import SlidingWindowAttention
from abstractinator.components.tokens import BYTES, pack_bytes
from abstractinator.components.transformer import SwiGLU, TransformerConfig
from abstractinator.contract.model import Batch

QUANTIZERS: dict[str, QuantizerConfig] = {
    "fsq": FSQConfig(codes_per_segment=2, fsq_levels=(4, 4)),
    "vq": VQConfig(codes_per_segment=2, codebook_size=16),
    "residual_vq": ResidualVQConfig(codes_per_segment=2, codebook_size=16),
    "simvq": SimVQConfig(codes_per_segment=2, codebook_size=16),
}

# Of segments, the mean and the shortest; (2, 1) for the other rules.
LENGTHS = {"information": (3.5, 3), "both": (3, 2), "whitespace": (3, 2)}

# One, two and three levels, with every rule somewhere and every quantizer somewhere.
SHAPES: dict[str, tuple[tuple[str, str], ...]] = {
    "information": (("information", "fsq"),),
    "threshold": (("threshold", "fsq"),),
    "whitespace": (("whitespace", "vq"),),
    "both": (("both", "simvq"),),
    "increase": (("increase", "residual_vq"),),
    "fixed": (("fixed", "fsq"),),
    "threshold-fixed": (("threshold", "simvq"), ("fixed", "fsq")),
    "whitespace-both": (("whitespace", "fsq"), ("both", "vq")),
    "information-information": (("information", "vq"), ("information", "fsq")),
    "increase-threshold-fixed": (("increase", "fsq"), ("threshold", "residual_vq"), ("fixed", "simvq")),
}


def tiny_transformer(width: int = 16, layers: int = 1, window: int = 5) -> TransformerConfig:
    return TransformerConfig(width=width, layers=layers, heads=2, window=window, mlp_width=16)


def tiny_level(rule: str, kind: str) -> LevelConfig:
    """One level of segments of at most five tokens."""
    compressor = CompressorConfig(
        entropy_model=EntropyModelConfig(tiny_transformer(), ngram_sizes=(2, 3), ngram_rows=64, ngram_width=8),
        segmentation=SegmentationConfig(rule, *LENGTHS.get(rule, (2, 1)), max_tokens_per_code=5),  # type: ignore
        quantizer=QUANTIZERS[kind],
        layers=1,
        mlp_width=16,
        value_width=4,
    )
    expander = ExpanderConfig(
        layers=1,
        mlp_width=16,
        position_width=8,
        predictor=tiny_transformer(layers=2, window=4),
        ngram_sizes=(2, 3),
        ngram_rows=64,
        ngram_width=8,
        match_sizes=(1, 2),
        match_window=9,
    )
    return LevelConfig(compressor, expander)


def tiny_config(shape: str) -> ModelConfig:
    """The settings of a model of SHAPES."""
    return ModelConfig(
        levels=tuple(tiny_level(rule, kind) for rule, kind in SHAPES[shape]),
        top_transformer_config=TopTransformerConfig(tiny_transformer(layers=2, window=4), ngram_rows=64, ngram_width=8),
    )


def tiny_model(shape: str, seed: int = 0) -> HierarchicalAELM:
    """A model of SHAPES in evaluation mode with random weights, cutting random text as it is asked to."""
    torch.manual_seed(seed)
    model = HierarchicalAELM(tiny_config(shape)).eval()
    # At the start of a training everything is almost zero; here every path is to be seen in the result.
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            nn.init.normal_(module.weight, std=0.5)
        if isinstance(module, SwiGLU | SlidingWindowAttention):
            nn.init.normal_(module.to_out.weight, std=module.to_out.in_features**-0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("start"):
            nn.init.normal_(parameter)
    tokens = pack_bytes(rows_of([random_text(random.Random(seed), 60) for _ in range(8)]))
    with torch.no_grad():
        for level in model.levels:
            entropies, _ = level.compressor.measure(tokens)
            if entropies is not None:
                level.compressor.segmenter.calibrate(tokens, entropies)
                level.compressor.segmenter.threshold += 1e-3  # the calibrated one may lie within rounding of an entropy
            tokens = level.compressor(tokens).codes
    return model


def losses_of(model: HierarchicalAELM, rows: Tensor, phase: str = EVERYTHING) -> HierarchicalLosses:
    """The losses of rows (B, N)."""
    return model(Batch.of(rows), phase)


def mean_loss(model: HierarchicalAELM, rows: Tensor) -> Tensor:
    """What a training step minimises, of rows (B, N)."""
    losses = losses_of(model, rows)
    return losses.total / losses.weight


def random_text(random_: random.Random, length: int) -> bytes:
    """Any bytes, a fifth of them spaces, so that the whitespace rule has something to find."""
    return bytes(random_.choice((32, *(random_.randrange(256) for _ in range(4)))) for _ in range(length))


def padded(rows: list[list[int]]) -> Tensor:
    """(B, N) byte ids with PAD at the ends."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[BYTES.pad] * (width - len(row))] for row in rows], dtype=torch.int64)


def rows_of(texts: list[bytes]) -> Tensor:
    """(B, N) byte ids of BOS and text, with PAD after."""
    return padded([[BYTES.bos, *text] for text in texts])
