"""Bytes as tokens: 0–255 are the bytes themselves, three special tokens lie above them."""

from collections.abc import Sequence
from typing import ClassVar

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


class ByteTokenizer:
    """Turns any bytes into token ids and back without loss; it has no state and needs no vocabulary file."""

    BYTES: ClassVar[int] = 256  # number of byte tokens
    BOS: ClassVar[int] = 256  # begins a document
    EOS: ClassVar[int] = 257  # ends a document
    PAD: ClassVar[int] = 258  # fills a row after the last document; never in a loss
    vocab_size: ClassVar[int] = 259

    def encode(self, text: bytes | str, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """Token ids of `text`, int64, shape (N,), with BOS before and EOS after where asked for.

        A `str` goes through `text_to_bytes`. The result is a new array that the caller may change.
        """
        data = np.frombuffer(text_to_bytes(text) if isinstance(text, str) else text, dtype=np.uint8)
        ids = np.empty(bos + len(data) + eos, dtype=np.int64)
        ids[int(bos) : int(bos) + len(data)] = data
        if bos:
            ids[0] = self.BOS
        if eos:
            ids[-1] = self.EOS
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes among `ids` (one dimension: list, array or CPU tensor); special tokens are dropped.

        Raises ValueError for an id outside 0…258, for another shape, and for ids that are not integers.
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
        return array[array < self.BYTES].astype(np.uint8).tobytes()
