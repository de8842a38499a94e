"""Small models that generation is tested on: with random weights, and one that knows a sentence."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import SHAPES, mean_loss, rows_of, tiny_model

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM

every_shape = pytest.mark.parametrize("shape", SHAPES)
some_shapes = pytest.mark.parametrize("shape", ["threshold", "whitespace-both", "increase-threshold-fixed"])
every_mode = pytest.mark.parametrize("mode", ["exact", "plan", "speculative"])
PROMPTS = [b"a", b"the cat sat on the mat", b"\xff\x00 \n", b"x y z"]
TEXT = b"the cat sat on the mat, the dog sat on the log. "


@cache
def model_of(shape: str) -> HierarchicalAELM:
    """Made once; no test changes it."""
    return tiny_model(shape)


@cache
def trained_model(shape: str) -> HierarchicalAELM:
    """Made once: it has read one sentence many times, so that drafts are accepted."""
    model = tiny_model(shape).train()
    for level in model.levels:
        level.compressor.freeze()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rows = rows_of([TEXT[start:] + TEXT * 2 for start in range(0, len(TEXT), 6)])
    for _ in range(120):
        mean_loss(model, rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
