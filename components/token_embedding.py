"""Vectors for tokens: a table a slot, hashed n-grams, matches, and the quantized vectors behind codes.

Letters: T packed tokens, Q slots, D width, G n-gram sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.match_model import MatchModel
from abstractinator.components.token_hash import ngram_hashes, token_hash
from abstractinator.components.tokens import Tokens, Vocabulary

HISTORY = -1  # stands for the tokens before a row begins


def check_at_least_one(config: object, *names: str) -> None:
    """Raises ValueError where one of these numbers of a configuration is below 1; of a tuple, each must be above."""
    for name in names:
        value = getattr(config, name)
        if min(value, default=1) < 1 if isinstance(value, tuple) else value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


class TokenEmbedding(nn.Module):
    """Sum of a learned vector per slot, of hashed n-grams that end at the token, of what followed them last, and of a
    linear map of the token's vector.

    vocabulary: what the tokens are. width: D. ngram_sizes: lengths n in tokens of the n-grams that are hashed
    into one table of ngram_rows × ngram_width and summed (BLT, Pagnoni et al. 2024, section 3.2.1); n = 1 is
    of use for tokens of several slots, where it is the whole tuple. vector_width: width of `Tokens.vectors`,
    0 where tokens have none. match_sizes, match_window: see MatchModel; match_width: width of its table of guesses.
    """

    columns: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        width: int,
        ngram_sizes: tuple[int, ...] = (),
        ngram_rows: int = 0,
        ngram_width: int = 64,
        vector_width: int = 0,
        match_sizes: tuple[int, ...] = (),
        match_window: int = 1,
        match_width: int = 32,
    ) -> None:
        super().__init__()
        self.vocabulary, self.ngram_sizes, self.ngram_rows = vocabulary, ngram_sizes, ngram_rows
        self.slots = nn.ModuleList(nn.Embedding(vocabulary.size, width) for _ in range(vocabulary.slots))
        if ngram_sizes:
            self.register_buffer("columns", torch.tensor(sorted(set(ngram_sizes))) - 1, persistent=False)
            self.ngrams = nn.EmbeddingBag(ngram_rows, ngram_width, mode="sum")
            self.from_ngrams = nn.Linear(ngram_width, width, bias=False)
        self.match = MatchModel(vocabulary, width, match_sizes, match_window, match_width) if match_sizes else None
        if vector_width:
            self.from_vectors = nn.Linear(vector_width, width, bias=False)

    @property
    def reach(self) -> int:
        """Of how many tokens, the newest included, hashes are needed."""
        return max((*self.ngram_sizes, *(self.match.sizes if self.match else ())), default=1)

    def forward(self, tokens: Tokens) -> Tensor:
        """→ (T, D); the vector of token t depends on the last `reach` tokens of its row up to t, and by matches on the
        `match_window` before these."""
        hashes = token_hash(tokens.ids)
        past = [hashes]
        for back in range(1, self.reach):
            moved = F.pad(hashes, (back, 0))[: len(hashes)]
            past.append(torch.where(tokens.packing.positions >= back, moved, HISTORY))
        x = self.slots[0](tokens.ids[:, 0])
        for slot in range(1, len(self.slots)):
            x = x + self.slots[slot](tokens.ids[:, slot])
        if self.ngram_sizes or self.match:
            ngrams = ngram_hashes(torch.stack(past, dim=1))
        if self.ngram_sizes:
            x = x + self.from_ngrams(self.ngrams(self.ngram_rows_of(ngrams)))
        if self.match:
            x = x + self.match(tokens, ngrams)
        if tokens.vectors is not None:
            x = x + self.from_vectors(tokens.vectors)
        return x

    def ngram_rows_of(self, ngrams: Tensor) -> Tensor:
        """(T, reach or more) hashes of n-grams → (T, G) rows of the n-gram table."""
        return ngrams.index_select(1, self.columns) % self.ngram_rows
