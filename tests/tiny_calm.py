"""Small models of the kinds `calm` and `calm_discrete`, with every path seen in the result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abstractinator.components.calm.calm import CALM
from abstractinator.components.calm.calm_discrete import CALMDiscrete
from abstractinator.components.calm.config import (
    CALMConfig,
    CALMDiscreteConfig,
    ChunkAutoencoderConfig,
    EnergyHeadConfig,
    TokenHeadConfig,
)
from abstractinator.components.transformer import TransformerConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer

TRANSFORMER = TransformerConfig(width=16, layers=2, heads=2, window=4, mlp_width=16)
TOKENS = ByteTokenizer()


def tiny_calm_config(chunk_size: int = 4, **changes: Any) -> CALMConfig:
    settings: dict[str, Any] = {
        "chunk_size": chunk_size,
        "embedding_width": 8,
        "transformer": TRANSFORMER,
        "autoencoder": ChunkAutoencoderConfig(width=16, mlp_width=16, latent_width=8),
        "head": EnergyHeadConfig(width=16, blocks=2, mlp_width=16, noise_width=4, samples=3, targets=5),
        "autoencoder_fraction": 0.5,
    }
    return CALMConfig(**(settings | changes))


def tiny_discrete_config(chunk_size: int = 4) -> CALMDiscreteConfig:
    return CALMDiscreteConfig(
        chunk_size=chunk_size,
        embedding_width=8,
        transformer=TRANSFORMER,
        head=TokenHeadConfig(width=16, blocks=1, mlp_width=16),
    )


def tiny_calm(chunk_size: int = 4, **changes: Any) -> CALM:
    torch.manual_seed(0)
    model = CALM(tiny_calm_config(chunk_size, **changes)).eval()
    nn.init.normal_(model.head.to_latent.weight, std=0.5)  # it begins as 0
    return model


def tiny_discrete(chunk_size: int = 4) -> CALMDiscrete:
    torch.manual_seed(0)
    return CALMDiscrete(tiny_discrete_config(chunk_size)).eval()


def document_rows(texts: list[bytes], size: int, length: int) -> Tensor:
    """(B, N) ids, a document a row: PAD before BOS up to a multiple of K, PAD after EOS."""
    rows = []
    for text in texts:
        ids = TOKENS.encode(text, bos=True, eos=True).tolist()
        ids = [TOKENS.PAD] * (-len(ids) % size) + ids
        rows.append(ids + [TOKENS.PAD] * (length - len(ids)))
    return torch.tensor(rows)
