"""−log p of texts by the language model, which reads [vector of what came before; last W tokens]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from abstractinator.components.glae.texts import texts_of
from abstractinator.contract.capabilities import Passage, Score

if TYPE_CHECKING:
    from abstractinator.components.glae.glae_model import GlaeModel


@torch.no_grad()
def exact_scores(model: GlaeModel, passages: Sequence[Passage]) -> list[Score]:
    """The sum over each continuation. A passage is read from its own beginning on, whether it begins a document or
    not."""
    contexts = [model.tokenizer.encode(passage.context).tolist() for passage in passages]
    targets = [model.tokenizer.encode(passage.continuation).tolist() for passage in passages]
    rows = [context + target for context, target in zip(contexts, targets, strict=True)]
    window = model.config.window
    count = max(1, max(-(-len(row) // window) for row in rows))
    parts = [row[at * window : (at + 1) * window] for row in rows for at in range(count)]
    texts = texts_of(parts, window, model.device)
    reading = model.language(texts, model.encoder.memory(texts), len(rows), ends=False)
    ((nll, right),) = model.decoder(reading)
    scores, offset = [], 0
    for context, row, length in zip(contexts, rows, reading.lengths.tolist(), strict=True):
        scored = slice(offset + len(context), offset + len(row))
        scores.append(Score(float(nll[scored].double().sum()), bool(right[scored].all())))
        offset += length
    return scores
