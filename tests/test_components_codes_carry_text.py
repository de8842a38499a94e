"""The ablation on which everything rests: without the right codes there is no text."""

import dataclasses
import random

import pytest
import torch
from tiny_models import rows_of, tiny_level, tiny_transformer

from components.code_sequence_transformer import TopTransformerConfig
from components.hierarchical_autoencoder import HierarchicalAutoencoder, ModelConfig
from components.tokens import Tokens, pack_bytes
from components.vector_quantizer import Kind, QuantizerConfig


def model_of(kind: Kind) -> HierarchicalAutoencoder:
    torch.manual_seed(0)
    level = tiny_level("whitespace", "fsq")
    quantizer = QuantizerConfig(kind=kind, codes_per_segment=2, codebook_size=64, fsq_levels=(8, 8), decay=0.9)
    segmentation = dataclasses.replace(level.compressor.segmentation, max_tokens_per_code=8)
    compressor = dataclasses.replace(
        level.compressor,
        quantizer=quantizer,
        segmentation=segmentation,
        mlp_width=96,
        value_width=12,
    )
    expander = dataclasses.replace(level.expander, mlp_width=128, place_width=32)
    return HierarchicalAutoencoder(
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


def byte_accuracy(model: HierarchicalAutoencoder, tokens: Tokens, codes: Tokens) -> float:
    """Share of the bytes that come back in their place of their segment."""
    segments = model.compress(tokens)[0].segments
    out = model.decompress(Tokens(codes.ids, codes.packing, codes.alphabet))
    counts = torch.bincount(out.code, minlength=codes.packing.total)
    first = counts.cumsum(0) - counts
    there = segments.offsets < counts[segments.of_token]
    at = (first[segments.of_token] + segments.offsets).clamp(max=len(out.code) - 1)
    return (there & (out.tokens.ids[at, 0] == tokens.ids[:, 0])).float().mean().item()


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_reconstruction_lives_from_the_codes(kind: Kind) -> None:
    model = model_of(kind).train()
    text = text_of_words(random.Random(0))
    rows = rows_of([text[i : i + 200] for i in range(0, len(text), 200)])
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    steps = 150
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - step / steps))
        batch = rows[torch.randint(len(rows), (8,))]
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()

    model.eval()
    tokens = pack_bytes(rows)
    codes = model.compress(tokens)[0].codes
    plain = (~codes.special).nonzero()[:, 0]
    shuffled = codes.ids.clone()
    shuffled[plain] = codes.ids[plain[torch.randperm(len(plain))]]
    assert byte_accuracy(model, tokens, codes) > 0.95
    assert byte_accuracy(model, tokens, dataclasses.replace(codes, ids=shuffled)) < 0.4
