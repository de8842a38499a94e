"""Batches of training rows, the number of rows of a training, and the rows of held-out text.

Letters: B rows, N token ids a row.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import LongTensor

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.data.arrangement import arranged, arranged_length
from abstractinator.data.corpus import Corpus
from abstractinator.data.packed_rows import PackedRows


class TrainLoader:
    """Batches of `batch_size` rows; only the very last may have fewer. Draws no random numbers of torch.

    `state_dict()` is the position after the last batch yielded, in rows: it can be resumed with another batch size.
    """

    def __init__(self, rows: PackedRows, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self._rows, self._batch_size = rows, batch_size
        self._loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Raises ValueError where the position of `load_state_dict` does not fit the data."""
        if self._loaded is not None:
            self._rows.load_state_dict(self._loaded)
            self._loaded = None
        return self._batches(iter(self._rows))

    def _batches(self, rows: Iterator[LongTensor]) -> Iterator[Batch]:
        while batch := list(islice(rows, self._batch_size)):
            yield Batch.of(torch.stack(batch), self._rows.tokenizer)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict() if self._loaded is None else self._loaded

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator continue after the batch at which `state` was saved."""
        self._loaded = state


def train_loader(
    corpus: Corpus,
    layout: RowLayout,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    tokenizer: Tokenizer | None = None,
) -> TrainLoader:
    """The batches of `num_epochs` epochs (None: without end), of which this rank trains every `world_size`-th row.

    tokenizer: None is that of bytes.
    """
    rows = PackedRows(corpus, layout, seed, num_epochs, rank, world_size, tokenizer=tokenizer)
    return TrainLoader(rows, batch_size)


def count_rows(
    corpus: Corpus, layout: RowLayout, num_epochs: int, seed: int, tokenizer: Tokenizer | None = None
) -> int:
    """The rows of `num_epochs` epochs. Reads the text once, as sizes of files are not those of their text."""
    ids = (tokenizer or ByteTokenizer()).text_ids
    tokens = sum(arranged_length(len(ids(document)), layout) for document in corpus.train_documents(0, seed))
    return -(-num_epochs * tokens // layout.length)


def rows_of(documents: list[bytes], layout: RowLayout, tokenizer: Tokenizer | None = None) -> LongTensor:
    """(B, N) token ids: documents as the layout arranges them, end to end, the last row filled up with PAD."""
    tokenizer = tokenizer or ByteTokenizer()
    stream = np.concatenate([arranged(document, layout, tokenizer) for document in documents])
    rows = np.full((-(-len(stream) // layout.length), layout.length), tokenizer.PAD, dtype=np.int64)
    rows.reshape(-1)[: len(stream)] = stream
    return torch.from_numpy(rows)  # type: ignore[return-value]
