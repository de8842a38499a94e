"""Documents packed into rows of tokens of one length, shuffled, exactly resumable.

The documents of an epoch, each as BOS bytes EOS, are one long string of tokens (token_string.py), and the
next epoch's follow at once; rows are cut from it one after the other. So a document ends at its EOS and
is otherwise interrupted by nothing but the end of a row; the next row continues where it stopped. Of a
long document (a novel has a thousand rows) neighbouring rows must not fill a batch: rows are cut into a
block of about `block_bytes`, and the block's rows are given out in an order shuffled by seed. A block ends
when it is full or, at the latest, with the row in which an epoch ends. A saved position is
the position in the string where the block begins and the number of rows given out; resuming cuts that block again.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import LongTensor
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data.corpus import Corpus
from abstractinator.data.token_string import Position, TokenString

BLOCK_BYTES = 16 * 2**20  # of text in a block: about 20 novels, 128 MB of memory


@dataclass(frozen=True)
class _Progress:
    """How far the rows have been given out: `next_row` counts them over all ranks, from the first row."""

    block_position: Position = field(default_factory=Position)  # where the open block begins
    block_first_row: int = 0  # the number of its first row
    next_row: int = 0  # all rows before this one have been given out, by all ranks together


class PackedRows(IterableDataset[LongTensor]):
    """Rows of token ids, each a LongTensor of shape (row_length,), for `num_epochs` (None: without end).

    Every token of every epoch is in exactly one row. Only the very last row is padded, with PAD. Of a
    distributed run each rank gives out every `world_size`-th row; the last round is filled up with rows of
    PAD alone, so that all ranks give out the same number. An iterator starts at the beginning, or, once,
    at the position that `load_state_dict` brought; one iterator is open at a time.

    Raises ValueError for a size out of range; iterating raises DataError when documents cannot be read.
    """

    def __init__(
        self,
        corpus: Corpus,
        row_length: int,
        seed: int,
        num_epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if row_length < 1 or block_bytes < 1 or seed < 0 or (num_epochs is not None and num_epochs < 1):
            raise ValueError(
                f"row_length={row_length}, block_bytes={block_bytes} and num_epochs={num_epochs} must be at "
                f"least 1, seed={seed} at least 0"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        self.corpus, self.row_length, self.seed, self.num_epochs = corpus, row_length, seed, num_epochs
        self.rank, self.world_size, self.block_bytes = rank, world_size, block_bytes
        self._position = _Progress()
        self._loaded: _Progress | None = None

    def __iter__(self) -> Iterator[LongTensor]:
        start, self._loaded = self._loaded or _Progress(), None
        self._position = start
        return self._rows(start)

    def _rows(self, start: _Progress) -> Iterator[LongTensor]:
        tokens = TokenString(self.corpus, self.seed, self.num_epochs, start.block_position)
        first, row = start.block_first_row, start.next_row + self.rank
        while True:
            position = tokens.position()
            block = self._cut_block(tokens)
            if block is None:
                break
            order = self._row_order(block, first)
            while row < first + len(block):
                round_end = row - self.rank + self.world_size
                self._position = _Progress(position, first, round_end)
                yield _row_tensor(block[order[row - first]])
                row += self.world_size
            first += len(block)
        if row - self.rank < first:  # other ranks have a row in this last round
            last = self._position
            round_end = row - self.rank + self.world_size
            self._position = _Progress(last.block_position, last.block_first_row, round_end)
            yield _row_tensor(np.full(self.row_length, ByteTokenizer.PAD, dtype=np.int64))

    def _cut_block(self, tokens: TokenString) -> np.ndarray | None:
        """The next rows in the order of the string, (rows, row_length) int64; None after the last."""
        rows = max(1, self.block_bytes // self.row_length)
        flat = np.empty(rows * self.row_length, dtype=np.int64)
        filled = tokens.fill(flat)
        if 0 < filled < len(flat):  # an epoch ended: finish the row with what comes next
            row_end = -(-filled // self.row_length) * self.row_length
            while filled < row_end and (taken := tokens.fill(flat[filled:row_end])):
                filled += taken
            flat[filled:row_end] = ByteTokenizer.PAD
            flat = flat[:row_end]
        return flat.reshape(-1, self.row_length) if filled else None

    def _row_order(self, block: np.ndarray, first_row: int) -> np.ndarray:
        """The order in which a block's rows are given out; a padded row stays the last."""
        padded = int(block[-1, -1] == ByteTokenizer.PAD)
        order = np.random.default_rng([self.seed, first_row]).permutation(len(block) - padded)
        return np.append(order, len(block) - 1) if padded else order

    def state_dict(self) -> dict[str, Any]:
        """The position after the row given out last: some plain numbers and names, no text. With
        `world_size` ranks that have given out equally many rows it is the same on every rank, and it
        can be resumed with another number of ranks."""
        return {**self._identity(), **asdict(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator go on from `state`, with the rows that would have followed.

        Raises ValueError for a state of another corpus, row length, seed or block size.
        """
        if missing := [key for key in self.state_dict() if key not in state]:
            raise ValueError(f"not a position of PackedRows: {', '.join(missing)} missing")
        for key, own in self._identity().items():
            if state[key] != own:
                raise ValueError(
                    f"the position was saved with {key}={state[key]}, here it is {own}; resume with the same "
                    "data and settings, or start anew"
                )
        position = Position(**state["block_position"])
        self._loaded = self._position = _Progress(position, state["block_first_row"], state["next_row"])

    def _identity(self) -> dict[str, Any]:
        """What must agree for a position to mean the same rows."""
        return {
            "corpus_fingerprint": self.corpus.fingerprint,
            "row_length": self.row_length,
            "seed": self.seed,
            "block_bytes": self.block_bytes,
        }


def _row_tensor(row: np.ndarray) -> LongTensor:
    return torch.from_numpy(row).long()  # type: ignore[return-value]


def _batch(rows: list[LongTensor]) -> Batch:
    return Batch.of(torch.stack(rows), ByteTokenizer.BYTES)  # type: ignore[arg-type]


def count_rows(corpus: Corpus, layout: RowLayout, num_epochs: int, seed: int) -> int:
    """The rows of so many epochs; reads the text once, as sizes of files and tables are not those of their text."""
    tokens = sum(len(document) + 2 for document in corpus.train_documents(0, seed))  # BOS and EOS
    return -(-num_epochs * tokens // layout.length)


def rows_of(documents: list[bytes], layout: RowLayout) -> LongTensor:
    """(B, N) byte ids: documents with BOS and EOS end to end, the last row filled up with PAD."""
    tokenizer = ByteTokenizer()
    stream = np.concatenate([tokenizer.encode(document, bos=True, eos=True) for document in documents])
    rows = np.full((-(-len(stream) // layout.length), layout.length), ByteTokenizer.PAD, dtype=np.int64)
    rows.reshape(-1)[: len(stream)] = stream
    return torch.from_numpy(rows)  # type: ignore[return-value]


def train_loader(
    corpus: Corpus,
    layout: RowLayout,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> StatefulDataLoader:
    """Batches of packed rows; only the very last may have fewer than batch_size rows.

    `state_dict()` is the position after the batch given out last. After `load_state_dict` the next
    iterator gives the batches that would have followed. torch's global random state is left alone.
    """
    rows = PackedRows(corpus, layout.length, seed, num_epochs, rank, world_size)
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function that torch 2.13 has deprecated; nothing a user could do.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return StatefulDataLoader(
            rows,
            batch_size=batch_size,
            num_workers=0,
            collate_fn=_batch,
            # A loader draws a seed for its workers at each start; with its own generator it leaves
            # torch's alone.
            generator=torch.Generator(),
        )
