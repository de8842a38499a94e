"""Bytes as tokens: 0–255 are the bytes themselves, three special tokens lie above them."""

from typing import Any

import numpy as np

from abstractinator.contract.tokenizer import Tokenizer


class ByteTokenizer(Tokenizer):
    """Each byte is a token; there is no state and no vocabulary file."""

    text_size = 256
    BOS = 256
    EOS = 257
    PAD = 258
    vocab_size = 259

    def text_ids(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8)

    def text_of(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def count_bytes(self, ids: Any) -> int:
        return int((ids < self.text_size).sum())
