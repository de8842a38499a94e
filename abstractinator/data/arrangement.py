"""The token ids of one document, as a layout arranges them."""

from __future__ import annotations

import numpy as np

from abstractinator.contract.model import RowLayout
from abstractinator.contract.tokenizer import Tokenizer


def arranged_length(tokens: int, layout: RowLayout) -> int:
    """How many ids a document of `tokens` ids of text becomes, BOS, EOS and PAD included."""
    if layout.documents == "separate":
        return max(1, -(-tokens // (layout.length - 2))) * layout.length
    return -(-(tokens + 2) // layout.multiple_of) * layout.multiple_of


def arranged(text: bytes, layout: RowLayout, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a document (`arranged_length`,), in as few bytes an id as its vocabulary allows."""
    ids = tokenizer.text_ids(text)
    whole = np.full(arranged_length(len(ids), layout), tokenizer.PAD, dtype=np.min_scalar_type(tokenizer.PAD))
    if layout.documents == "separate":
        _fill_rows(whole.reshape(-1, layout.length), ids, tokenizer)
    else:
        first = len(whole) - len(ids) - 2
        whole[first], whole[-1] = tokenizer.BOS, tokenizer.EOS
        whole[first + 1 : -1] = ids
    return whole


def _fill_rows(rows: np.ndarray, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    """Writes BOS, a part of the ids and EOS into each row."""
    room = rows.shape[1] - 2
    full = len(ids) // room
    rows[:, 0] = tokenizer.BOS
    rows[:full, 1:-1] = ids[: full * room].reshape(-1, room)
    rows[:full, -1] = tokenizer.EOS
    if full < len(rows):
        rest = len(ids) - full * room
        rows[-1, 1 : 1 + rest] = ids[full * room :]
        rows[-1, 1 + rest] = tokenizer.EOS
