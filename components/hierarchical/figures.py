"""Figures of what a hierarchy does with some rows: segment lengths, code usage, and the entropy of each byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.tokens import BYTES, tokens_of
from abstractinator.contract.model import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRETCH = slice(64, 64 + 160)  # bytes whose entropies are drawn


@torch.no_grad()
def figures_of(model: Hierarchy, batch: Batch) -> dict[str, Figure]:
    """matplotlib figures by name."""
    from abstractinator.components import plotting

    compressed = model.compress(tokens_of(batch.ids))
    names = [f"level {number}" for number in range(1, len(compressed) + 1)]
    counts = []
    for c in compressed:
        plain = c.codes.ids[~c.codes.special]
        size = c.codes.vocabulary.codebook_size
        counts.append(torch.bincount(plain.flatten(), minlength=size)[:size].cpu().numpy())
    made = {
        "segment_lengths": plotting.segment_lengths([c.segments.lengths.cpu().numpy() for c in compressed], names),
        "code_usage": plotting.code_usage(counts, names),
    }
    lowest = compressed[0]
    if lowest.entropies is not None:
        values = lowest.tokens.ids[_STRETCH, 0].cpu().numpy()
        entropies = np.nan_to_num(lowest.entropies[_STRETCH].cpu().numpy(), posinf=0.0)
        starts = (lowest.segments.offsets[_STRETCH] == 0).cpu().numpy()
        text = bytes(np.where(values < BYTES.codebook_size, values, 0).astype(np.uint8))
        made["entropy_trace"] = plotting.entropy_trace(text, entropies, starts)
    return made
