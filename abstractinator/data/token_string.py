"""The documents of all epochs as one string of tokens, which can be read from any position on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.data.corpus import Corpus
from abstractinator.data.data_config import DataError


@dataclass(frozen=True)
class Position:
    """A position in the string: `token` tokens into a document of an epoch."""

    epoch: int = 0
    document: Any = None  # the document's position, as its DocumentStream gave it; None: the epoch's first
    token: int = 0  # so many of the document's tokens (BOS bytes EOS) come before the position


class TokenString:
    """The tokens from `start` on: each document as BOS bytes EOS, epoch after epoch."""

    def __init__(self, corpus: Corpus, seed: int, num_epochs: int | None, start: Position) -> None:
        self._corpus, self._seed, self._num_epochs = corpus, seed, num_epochs
        self._tokenizer = ByteTokenizer()
        self._open_epoch(start.epoch, start.document)
        if start.token:
            self._open_document()
            self._used = start.token

    def position(self) -> Position:
        """The position of the next token."""
        if self._used < len(self._tokens):
            return Position(self._epoch, self._document, self._used)
        return Position(self._epoch, self._stream.position(), 0)

    def fill(self, target: np.ndarray) -> int:
        """Write the next tokens into `target` (int64, flat) and return how many: fewer than it holds only
        where an epoch ends, and 0 only at the end of the last.

        Raises DataError when an epoch has no documents.
        """
        filled = 0
        while filled < len(target):
            if self._used == len(self._tokens) and not self._open_document():
                if not self._has_documents:
                    raise DataError(f"{self._corpus.name} has no documents to train on; all are held out or empty")
                if self._epoch + 1 == self._num_epochs:
                    break
                self._open_epoch(self._epoch + 1, None)
                if filled:
                    break
                continue
            part = self._tokens[self._used : self._used + len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            self._used += len(part)
        return filled

    def _open_epoch(self, epoch: int, document: Any) -> None:
        self._epoch = epoch
        self._stream = self._corpus.train_documents(epoch, self._seed, document)
        self._has_documents = document is not None  # one was read before this position
        self._tokens = np.empty(0, dtype=np.int64)  # of the open document
        self._used = 0  # so many of them lie before the next token
        self._document: Any = None  # the open document's position

    def _open_document(self) -> bool:
        """Open the epoch's next document; False when there is none."""
        position = self._stream.position()
        text = next(self._stream, None)
        if text is None:
            return False
        self._document, self._has_documents = position, True
        self._tokens, self._used = self._tokenizer.encode(text, bos=True, eos=True), 0
        return True
