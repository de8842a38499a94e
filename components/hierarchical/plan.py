"""What highest codes stand for: each level of them decoded at once.

Letters: R rows, m codes a row, n bytes a row, L levels, Q slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchy import Hierarchy


@torch.no_grad()
def decode_codes(model: Hierarchy, ids: Tensor, counts: Tensor, opened: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable bytes of highest codes, each level decoded at once → (R, n), of which (R,) count.

    ids: (R, m, Q), of which the first `counts` (R,) of each row count. opened: (R, L) see
    IncrementalModel.open_tokens, the first code being that of the open segment; zeros at a boundary.
    """
    for i in reversed(range(len(model.levels))):
        level, number = model.levels[i], torch.arange(ids.shape[1], device=ids.device)
        tokens, lengths = level.expander.expand(level.compressor.quantizer.decode(ids.flatten(0, 1)))
        offset = torch.arange(tokens.shape[1], device=ids.device)
        lengths = lengths.view(ids.shape[:2]) * (number < counts[:, None])
        inside = (offset < lengths[:, :, None]) & (offset >= opened[:, i, None, None] * (number == 0)[:, None])
        ids, counts = _packed_rows(tokens.view(*inside.shape, tokens.shape[-1]), inside)
    return ids[:, :, 0], counts


def _packed_rows(tokens: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R, m, L, Q) of m segments a row, where `inside` (R, m, L), moved to the left of their row → (R, n, Q),
    and (R,) their number."""
    counts = inside.sum((1, 2))
    inside_row = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (R, n)
    packed = tokens.new_zeros(*inside_row.shape, tokens.shape[-1])
    packed[inside_row] = tokens[inside]
    return packed, counts
