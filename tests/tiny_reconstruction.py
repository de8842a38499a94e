"""A small autoencoder that was trained until its codes carry its text of 40 words."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import torch
from tiny_models import mean_loss, rows_of, tiny_level, tiny_transformer
from torch import Tensor

from abstractinator.components.bottlenecks.fsq import FSQConfig
from abstractinator.components.bottlenecks.kinds import QuantizerConfig
from abstractinator.components.bottlenecks.vq import VQConfig
from abstractinator.components.hierarchical.byte_segment_compressor import Encoded
from abstractinator.components.hierarchical.code_sequence_transformer import TopTransformerConfig
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.hierarchical.repair import verified


def untrained(kind: str) -> HierarchicalAELM:
    torch.manual_seed(0)
    level = tiny_level("whitespace", "fsq")
    quantizers: dict[str, QuantizerConfig] = {
        "fsq": FSQConfig(codes_per_segment=2, fsq_levels=(8, 8)),
        "vq": VQConfig(codes_per_segment=2, codebook_size=64, decay=0.9),
    }
    segmentation = dataclasses.replace(level.compressor.segmentation, max_tokens_per_code=8)
    compressor = dataclasses.replace(
        level.compressor,
        quantizer=quantizers[kind],
        segmentation=segmentation,
        mlp_width=96,
        value_width=12,
    )
    expander = dataclasses.replace(level.expander, mlp_width=128, position_width=32)
    return HierarchicalAELM(
        ModelConfig(
            levels=(dataclasses.replace(level, compressor=compressor, expander=expander),),
            top_transformer_config=TopTransformerConfig(tiny_transformer(), ngram_rows=64, ngram_width=8),
            predict_loss_weight=0.0,
            top_lm_loss_weight=0.0,
        )
    )


def text_of_words(random_: random.Random) -> bytes:
    """Some 6,000 bytes of 40 words of 3 to 7 letters."""
    words = [bytes(random_.choices(b"abcdefghijklmnopqrstuvwxyz", k=random_.randint(3, 7))) for _ in range(40)]
    return b" ".join(random_.choices(words, k=1000))


@cache
def trained(kind: str) -> tuple[HierarchicalAELM, Tensor]:
    """The model, in evaluation mode, and its text: (B, N) byte ids."""
    model = untrained(kind).train()
    text = text_of_words(random.Random(0))
    rows = rows_of([text[i : i + 200] for i in range(0, len(text), 200)])
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    steps = 150
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - step / steps))
        batch = rows[torch.randint(len(rows), (8,))]
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    return model.eval(), rows


def searched(level: Level, encoded: Encoded) -> Encoded:
    """With the codes that a search finds; no segment is split."""
    distinct = encoded.distinct
    better, _ = verified(encoded.quantized, distinct.tokens, distinct.segments, level.compressor, level.expander)
    return Encoded.of(distinct, better, encoded.codes.packing, encoded.codes.vocabulary)
