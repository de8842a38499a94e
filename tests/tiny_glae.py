"""Small models of the kind `glae`, with every path seen in the result."""

from __future__ import annotations

from typing import Any

import torch

from abstractinator.components.glae.config import EncoderConfig, GlaeConfig
from abstractinator.components.glae.glae import Glae
from abstractinator.components.transformer import TransformerConfig

W = 16  # the longest text


def tiny_glae_config(**changes: Any) -> GlaeConfig:
    chosen: dict[str, Any] = {
        "embedding_width": 3 * W + 8,
        "memory_width": 8,
        "ngram_rows": 64,
        "ngram_width": 8,
        "encoder": EncoderConfig(width=16, layers=1, heads=2, mlp_width=16),
        "decoder": TransformerConfig(width=16, layers=2, heads=2, window=W, mlp_width=16),
        "decoder_ngram_rows": 64,
        "decoder_ngram_width": 8,
    }
    return GlaeConfig(**(chosen | changes))


def tiny_glae(**changes: Any) -> Glae:
    torch.manual_seed(0)
    model = Glae(tiny_glae_config(**changes)).eval()
    for name, parameter in model.named_parameters():
        if "to_out" in name:  # they begin as 0
            torch.nn.init.normal_(parameter, std=0.3)
    return model
