"""What a tokenizer is here: bytes to token ids and back, without loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np


def text_to_bytes(text: str) -> bytes:
    """UTF-8 of `text`, defined for every `str`, lone surrogates included.

    U+DC80–U+DCFF, alone, is what Python makes of an undecodable byte (`surrogateescape`: file names,
    command-line arguments), so it becomes that byte again. Any other lone surrogate has no byte to go
    back to and becomes its three bytes (`surrogatepass`), as in JSON that holds half of a pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b"".join(
            char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
            for char in text
        )


class Tokenizer(ABC):
    """Turns any bytes into token ids and back without loss.

    text_size: V; the ids 0 … V − 1 stand for text, the three special ones lie above them. BOS = V begins a document,
    EOS = V + 1 ends it, PAD = V + 2 fills a row and is in no loss. source: the text of the file from which the
    tokenizer was made, which a checkpoint holds; None where there is none.
    """

    text_size: int
    BOS: int
    EOS: int
    PAD: int
    vocab_size: int
    source: str | None = None

    @property
    def digest(self) -> str:
        """A short name of what `source` holds; "bytes" without one."""
        if self.source is None:
            return "bytes"
        return blake2b(self.source.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @abstractmethod
    def text_ids(self, text: bytes) -> np.ndarray:
        """The ids of a text, without special tokens: (N,) unsigned integers, which may be read only."""

    @abstractmethod
    def text_of(self, ids: np.ndarray) -> bytes:
        """The bytes of ids below V, (N,)."""

    @abstractmethod
    def count_bytes(self, ids: Any) -> int:
        """The bytes that ids stand for; an array or a CPU tensor of any shape, special tokens count as none."""

    def encode(self, text: bytes | str, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """Token ids of `text`, int64, shape (N,), with BOS before and EOS after where asked for.

        A `str` goes through `text_to_bytes`. The result is a new array that the caller may change.
        """
        inner = self.text_ids(text_to_bytes(text) if isinstance(text, str) else text)
        ids = np.empty(bos + len(inner) + eos, dtype=np.int64)
        ids[int(bos) : int(bos) + len(inner)] = inner
        if bos:
            ids[0] = self.BOS
        if eos:
            ids[-1] = self.EOS
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of `ids` (one dimension: list, array or CPU tensor); special tokens are dropped.

        Raises ValueError for an id outside the vocabulary, for another shape, and for ids that are not integers.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"ids must be a flat sequence of integers, not {array.dtype} of shape {array.shape}; "
                "decode the rows of a batch one by one"
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            bad = array[(array < 0) | (array >= self.vocab_size)][0]
            raise ValueError(f"token id {bad} is outside 0…{self.vocab_size - 1}")
        return self.text_of(array[array < self.text_size])
