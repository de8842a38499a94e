"""What a text costs the language model, in nats.

Letters: P passages, W tokens of a text that a vector carries, K such texts of the longest passage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abstractinator.components.glae.glae_model import GlaeModel
from abstractinator.components.glae.texts import Texts, texts_of
from abstractinator.contract.capabilities import Passage, Score


@torch.no_grad()
def exact_scores(model: GlaeModel, passages: Sequence[Passage]) -> list[Score]:
    """-log p(continuation | context), each byte given the last W and the vector of those before. A window from the
    middle of a text begins with BOS, too, as the rows of the training do."""
    encode, window = model.tokenizer.encode, model.config.window
    contexts = [encode(passage.context).tolist() for passage in passages]
    rows = [
        [*context, *encode(passage.continuation).tolist()] for context, passage in zip(contexts, passages, strict=True)
    ]
    parts = max(-(-len(row) // window) for row in rows)
    grid = texts_of(rows, parts * window, model.device)
    starts = torch.arange(parts, device=model.device) * window
    lengths = (grid.lengths[:, None] - starts).clamp(0, window).flatten()
    texts = Texts(grid.ids.view(-1, window), lengths)
    reading = model.language(texts, model.encoder.memory(texts), (len(rows), parts * window + 2))
    [(nll, right)] = model.decoder(reading)
    scores, sizes = [], reading.lengths.tolist()
    for row, context, nlls, rights in zip(rows, contexts, nll.double().split(sizes), right.split(sizes), strict=True):
        scored = slice(len(context), len(row))
        scores.append(Score(float(nlls[scored].sum()), bool(rights[scored].all())))
    return scores
