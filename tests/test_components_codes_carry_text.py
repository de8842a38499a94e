"""The ablation on which everything rests: without the right codes there is no text."""

import dataclasses

import pytest
import torch
from tiny_reconstruction import searched, trained

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.segmentation import Segments
from abstractinator.components.tokens import Tokens, pack_bytes


def byte_accuracy(model: HierarchicalAELM, tokens: Tokens, segments: Segments, codes: Tokens) -> float:
    """Share of the bytes that are right at their position in their segment."""
    out = model.decompress(Tokens(codes.ids, codes.packing, codes.vocabulary))
    counts = torch.bincount(out.code, minlength=codes.packing.total)
    first = counts.cumsum(0) - counts
    there = segments.offsets < counts[segments.of_token]
    at = (first[segments.of_token] + segments.offsets).clamp(max=len(out.code) - 1)
    return (there & (out.tokens.ids[at, 0] == tokens.ids[:, 0])).float().mean().item()


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_reconstruction_lives_from_the_codes(kind: str) -> None:
    model, rows = trained(kind)
    tokens = pack_bytes(rows)
    level = model.levels[0]
    segments = level.compressor(tokens).segments
    codes = searched(level, level.compressor.encode(tokens, segments)).codes  # of whole segments
    plain = (~codes.special).nonzero()[:, 0]
    shuffled = codes.ids.clone()
    shuffled[plain] = codes.ids[plain[torch.randperm(len(plain))]]
    assert byte_accuracy(model, tokens, segments, codes) > 0.95
    assert byte_accuracy(model, tokens, segments, dataclasses.replace(codes, ids=shuffled)) < 0.4
