"""The documents of all epochs as one string of tokens, which can be read from any position."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import RowLayout
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.data.arrangement import arranged
from abstractinator.data.corpus import Corpus
from abstractinator.data.data_config import DataError


@dataclass(frozen=True)
class Position:
    """A position in the string: `token` tokens into a document of an epoch."""

    epoch: int = 0
    document: Any = None  # the document's position, as its DocumentStream gave it; None: the epoch's first
    token: int = 0  # ids of the document, as it is arranged, before the position


class TokenString:
    """The tokens from `start` to the end of epoch `num_epochs - 1`: each document as `layout` arranges it."""

    def __init__(
        self,
        corpus: Corpus,
        layout: RowLayout,
        seed: int,
        num_epochs: int | None,
        start: Position,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._corpus, self._seed, self.num_epochs = corpus, seed, num_epochs
        self._layout, self._tokenizer = layout, tokenizer or ByteTokenizer()
        self._open_epoch(start.epoch, start.document)
        if start.token:
            self._open_document()
            self._used = start.token

    def position(self) -> Position:
        """The position of the next token."""
        if self._used < len(self._tokens):
            return Position(self._epoch, self._document, self._used)
        return Position(self._epoch, self._stream.position(), 0)

    def at_end(self) -> bool:
        """Whether there is no further token. Raises DataError when an epoch has no documents."""
        if self.num_epochs is not None and self._epoch >= self.num_epochs:
            return True
        while self._used == len(self._tokens) and not self._open_document():
            if not self._has_documents:
                raise DataError(f"{self._corpus.name} has no documents to train on; all are held out or empty")
            if self._epoch + 1 == self.num_epochs:
                return True
            self._open_epoch(self._epoch + 1, None)
        return False

    def fill(self, target: np.ndarray) -> int:
        """Write the next tokens into `target` (int64, flat) and return their number: fewer than it holds only
        where an epoch ends, and 0 only at the end of the last.

        Raises DataError when an epoch has no documents.
        """
        filled, epoch = 0, self._epoch
        while filled < len(target) and not self.at_end():
            if self._epoch != epoch:
                if filled:
                    break
                epoch = self._epoch
            count = min(len(self._tokens) - self._used, len(target) - filled)
            target[filled : filled + count] = self._tokens[self._used : self._used + count]
            filled += count
            self._used += count
        return filled

    def _open_epoch(self, epoch: int, document: Any) -> None:
        self._epoch = epoch
        self._stream = self._corpus.train_documents(epoch, self._seed, document)
        self._has_documents = document is not None  # one was read before this position
        self._tokens = np.zeros(0, dtype=np.uint16)  # of the open document
        self._used = 0  # those of them before the next token
        self._document: Any = None  # the open document's position

    def _open_document(self) -> bool:
        """Open the epoch's next document; False when there is none."""
        position = self._stream.position()
        text = next(self._stream, None)
        if text is None:
            return False
        self._document, self._has_documents = position, True
        self._tokens, self._used = arranged(text, self._layout, self._tokenizer), 0
        return True
