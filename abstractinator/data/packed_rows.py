"""Documents as rows of tokens of one length, shuffled, exactly resumable.

The documents of an epoch, each as the layout arranges it, are one long string of tokens (token_string.py), and the next
epoch's follow at once; rows are cut from it one after the other. A document ends at its EOS and is otherwise
interrupted only by the end of a row; the next row continues it. Neighbouring rows of a long document (a novel has a
thousand rows) must not fill a batch: rows are cut into a block of about `block_bytes`, and the block's rows are yielded
in an order shuffled by seed. A block ends when it is full or, at the latest, with the row in which an epoch ends. A
saved position is the position in the string where the block begins and the number of rows yielded; resuming cuts that
block again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import LongTensor

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import RowLayout
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.data.corpus import Corpus
from abstractinator.data.token_string import Position, TokenString

BLOCK_BYTES = 16 * 2**20  # of text in a block: about 20 novels, 128 MB of memory


@dataclass(frozen=True)
class _Progress:
    """The rows yielded so far: `next_row` counts them over all ranks, from the first row.

    block_epochs: the number of epochs for which the open block was cut. The last row of the last epoch is padded and
    stays last, so a run that is resumed with another number must cut this block as before.
    """

    block_position: Position = field(default_factory=Position)  # where the open block begins
    block_first_row: int = 0  # the number of its first row
    next_row: int = 0  # all rows before this one have been yielded, by all ranks together
    block_epochs: int | None = None


class PackedRows:
    """Rows of token ids, each a LongTensor of shape (layout.length,), for `num_epochs` (None: without end).

    Every token of every epoch is in exactly one row. Only the very last row is filled up with PAD, apart from what the
    layout puts there. Each rank of a
    distributed run yields every `world_size`-th row; the last round is completed with rows of PAD alone, so that all
    ranks yield the same number. An iterator starts at the beginning, or, once, at the position given to
    `load_state_dict`; one iterator is open at a time.

    Raises ValueError for a size out of range; iterating raises DataError when documents cannot be read.
    """

    def __init__(
        self,
        corpus: Corpus,
        layout: RowLayout,
        seed: int,
        num_epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        block_bytes: int = BLOCK_BYTES,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if block_bytes < 1 or seed < 0 or (num_epochs is not None and num_epochs < 1):
            raise ValueError(
                f"block_bytes={block_bytes} and num_epochs={num_epochs} must be at least 1, seed={seed} at least 0"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        self.corpus, self.layout, self.seed, self.num_epochs = corpus, layout, seed, num_epochs
        self.tokenizer = tokenizer or ByteTokenizer()
        self.rank, self.world_size, self.block_bytes = rank, world_size, block_bytes
        self._progress = _Progress(block_epochs=num_epochs)
        self._loaded: _Progress | None = None

    def __iter__(self) -> Iterator[LongTensor]:
        start, self._loaded = self._loaded or _Progress(block_epochs=self.num_epochs), None
        self._progress = start
        return self._rows(start)

    def _rows(self, start: _Progress) -> Iterator[LongTensor]:
        if self.num_epochs is not None and start.block_position.epoch >= self.num_epochs:
            return  # resumed with fewer epochs than were trained
        first, row = start.block_first_row, start.next_row + self.rank
        tokens = self._tokens(start.block_position, start.block_epochs)
        while True:
            position, epochs = tokens.position(), tokens.num_epochs
            block = self._cut_block(tokens)
            if block is None:
                break
            order = self._row_order(block, first)
            while row < first + len(block):
                self._progress = _Progress(position, first, self._round_end(row), epochs)
                yield torch.from_numpy(block[order[row - first]])  # type: ignore[misc]
                row += self.world_size
            first += len(block)
            if epochs != self.num_epochs and (tokens.at_end() or first >= start.next_row):
                # All blocks of a position with another number of epochs have been cut as before.
                first = max(first, start.next_row)  # if more: rows of PAD that completed the last round
                tokens = self._tokens(tokens.position(), self.num_epochs)
        if row - self.rank < first:  # other ranks have a row in this last round
            last = self._progress
            self._progress = _Progress(
                last.block_position, last.block_first_row, self._round_end(row), last.block_epochs
            )
            yield torch.full((self.layout.length,), self.tokenizer.PAD)  # type: ignore[misc]

    def _tokens(self, position: Position, num_epochs: int | None) -> TokenString:
        return TokenString(self.corpus, self.layout, self.seed, num_epochs, position, self.tokenizer)

    def _round_end(self, row: int) -> int:
        """The first row after the round in which this rank yields `row`."""
        return row - self.rank + self.world_size

    def _cut_block(self, tokens: TokenString) -> np.ndarray | None:
        """The next rows in the order of the string, (rows, length) int64; None after the last."""
        length = self.layout.length
        rows = max(1, self.block_bytes // length)
        flat = np.empty(rows * length, dtype=np.int64)
        filled = tokens.fill(flat)
        if 0 < filled < len(flat):  # an epoch ended: complete the row with the next one's tokens
            row_end = -(-filled // length) * length
            while filled < row_end and (taken := tokens.fill(flat[filled:row_end])):
                filled += taken
            flat[filled:row_end] = self.tokenizer.PAD
            flat = flat[:row_end]
        return flat.reshape(-1, length) if filled else None

    def _row_order(self, block: np.ndarray, first_row: int) -> np.ndarray:
        """The order in which a block's rows are yielded; a padded row stays the last."""
        padded = int(block[-1, -1] == self.tokenizer.PAD)
        order = np.random.default_rng([self.seed, first_row]).permutation(len(block) - padded)
        return np.append(order, len(block) - 1) if padded else order

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row yielded: a few plain numbers and names, no text.

        After equally many rows it is the same on each of the `world_size` ranks. It can be resumed with another number
        of ranks or epochs: what has not been yielded follows, each document of a further epoch once.
        """
        return {**self._identity(), **asdict(self._progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator continue at `state`, with the rows that would have followed.

        Raises ValueError for a state of another corpus, layout, tokenizer, seed or block size.
        """
        if missing := [key for key in self.state_dict() if key not in state]:
            raise ValueError(f"not a position of PackedRows: {', '.join(missing)} missing")
        for key, own in self._identity().items():
            if state[key] != own:
                raise ValueError(
                    f"the position was saved with {key}={state[key]}, here it is {own}; resume with the same "
                    "data and settings, or start again"
                )
        position = Position(**state["block_position"])
        self._loaded = self._progress = _Progress(
            position, state["block_first_row"], state["next_row"], state["block_epochs"]
        )

    def _identity(self) -> dict[str, Any]:
        """What must agree for a position to mean the same rows."""
        return {
            **self.corpus.settings,
            "corpus_fingerprint": self.corpus.fingerprint,
            "row_length": self.layout.length,
            "documents": self.layout.documents,
            "multiple_of": self.layout.multiple_of,
            "seed": self.seed,
            "block_bytes": self.block_bytes,
            "tokenizer": self.tokenizer.digest,
        }
