"""What a level reads and what it writes: tokens. Bytes are the tokens of level 0, codes those above it.

Letters: T packed tokens, Q slots of a token (1 for bytes, codes per segment above), K codes in a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abstractinator.components.packing import Packing


@dataclass(frozen=True)
class Vocabulary:
    """What a token can be: Q slots of K codes each, or one of the special tokens outside the code space.

    A special token holds its number in all its slots. For bytes (K = 256, Q = 1) the numbers are those of
    ByteTokenizer: BOS 256, EOS 257, PAD 258.
    """

    codebook_size: int = 256
    slots: int = 1

    @property
    def bos(self) -> int:
        return self.codebook_size

    @property
    def eos(self) -> int:
        return self.codebook_size + 1

    @property
    def pad(self) -> int:
        return self.codebook_size + 2

    @property
    def size(self) -> int:
        """Numbers that a slot can hold, special ones included."""
        return self.codebook_size + 3

    def is_special(self, ids: Tensor) -> Tensor:
        """(…) ids → (…) bool, true on the numbers of special tokens."""
        return ids >= self.codebook_size

    def special_from(self, other: Vocabulary, ids: Tensor) -> Tensor:
        """Numbers of special tokens in another vocabulary → those of the same tokens in this one."""
        return ids - other.codebook_size + self.codebook_size


BYTES = Vocabulary()


@dataclass(frozen=True)
class Tokens:
    """A packed sequence of tokens of one level.

    ids: (T, Q) int64. vectors: (T, D) the quantized vectors behind codes, through which gradients reach the
    level below; None for bytes.
    """

    ids: Tensor
    packing: Packing
    vocabulary: Vocabulary
    vectors: Tensor | None = None

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on a device."""
        packing = Packing.from_lengths(self.packing.lengths.to(device))
        vectors = None if self.vectors is None else self.vectors.to(device)
        return Tokens(self.ids.to(device), packing, self.vocabulary, vectors)

    @property
    def special(self) -> Tensor:
        """(T,) bool, true on BOS and EOS."""
        return self.vocabulary.is_special(self.ids[:, 0])


def tokens_of(rows: Tensor) -> Tokens:
    """(B, N) byte ids, PAD at the ends of rows → packed Tokens. The ids are taken as valid (see `pack_bytes`)."""
    mask = rows != BYTES.pad
    return Tokens(rows[mask][:, None], Packing.from_mask(mask), BYTES)


def pack_texts(texts: bytes | list[bytes]) -> Tokens:
    """A text, or several, each a row: BOS and its bytes. Raises ValueError for values that are not bytes."""
    several = [texts] if isinstance(texts, bytes) else texts
    if wrong := [text for text in several if not isinstance(text, bytes)] if isinstance(several, list) else [several]:
        raise ValueError(
            f"a text is bytes, several are a list of them; not {type(wrong[0]).__name__}: use text.encode(), or "
            "pack_bytes for a tensor of byte ids"
        )
    rows = [[BYTES.bos, *text] for text in several]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return Tokens(ids[:, None], Packing.from_lengths(lengths), BYTES)


def pack_bytes(rows: Tensor) -> Tokens:
    """`tokens_of` rows that a user gives.

    Raises ValueError for an id that is not one of ByteTokenizer's, and for PAD before other tokens.
    """
    if rows.dim() != 2 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be a (B, N) int64 tensor, not {tuple(rows.shape)} {rows.dtype}")
    if rows.numel() and (rows.min() < 0 or rows.max() > BYTES.pad):
        raise ValueError(f"byte ids lie in 0…{BYTES.pad}; found {rows.min()}…{rows.max()}")
    mask = rows != BYTES.pad
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("PAD may stand only at the end of a row; pack rows from the left")
    return tokens_of(rows)
