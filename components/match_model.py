"""What came next the last time: the token that followed where the row's last k tokens stood together before.

The match model of compressors (Mahoney 2005, "Adaptive weighing of context models", PAQ), as an input of a network: an
induction head (Olsson et al. 2022) that need not be learned. Names, phrases and identifiers that come again are known
from their first letters on, at the price of a sort.

Letters: T packed tokens, K sizes, Q slots, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.token_hash import mix
from abstractinator.components.tokens import Tokens, Vocabulary


class MatchModel(nn.Module):
    """A vector for what followed last time, summed over sizes.

    sizes: K numbers k of tokens that must have stood together before; the longer, the surer the guess. window: how many
    tokens ago they may have ended at most. guess_width: of the table of guesses, one for each token, slot and size.
    """

    def __init__(
        self, vocabulary: Vocabulary, width: int, sizes: tuple[int, ...], window: int, guess_width: int
    ) -> None:
        super().__init__()
        self.sizes, self.window, self.vocabulary = tuple(sorted(set(sizes))), window, vocabulary
        self.no_match = vocabulary.size  # the id for "no match" in each slot
        tables = len(self.sizes) * vocabulary.slots
        self.guesses = nn.EmbeddingBag(tables * (vocabulary.size + 1), guess_width, mode="sum")
        self.from_guesses = nn.Linear(guess_width, width, bias=False)
        self.register_buffer("columns", torch.tensor(self.sizes) - 1, persistent=False)
        self.register_buffer("first", torch.arange(tables) * (vocabulary.size + 1), persistent=False)

    columns: Tensor
    first: Tensor

    def forward(self, tokens: Tokens, ngrams: Tensor) -> Tensor:
        """ngrams: (T, max(sizes) or more) hashes of those that end at each token → (T, D), of what may follow it."""
        return self.from_guesses(self.guesses(self.rows_of(self.followers(tokens, ngrams))))

    @torch.no_grad()
    def followers(self, tokens: Tokens, ngrams: Tensor) -> Tensor:
        """(T, K, Q) the token after the last earlier k-gram of the row that is equal to the one ending at each token;
        `no_match` without one in the window."""
        packing = tokens.packing
        total, sizes = packing.total, len(self.sizes)
        # Equal k-grams of a row come to lie side by side, in their order.
        keys = mix(ngrams[:, self.columns], packing.rows[:, None] + 1).t().flatten()
        keys, order = keys.sort(stable=True)
        before = F.pad(torch.where(keys[1:] == keys[:-1], order[:-1], -1), (1, 0), value=-1)[: len(order)]
        before = torch.empty_like(order).scatter_(0, order, before).view(sizes, total).t()  # (T, K) in K · T entries
        known = (before >= 0) & (packing.positions[:, None] >= self.columns)
        after = torch.where(known, before, 0) % max(total, 1) + 1
        index = torch.arange(total, device=after.device)[:, None]
        known &= index - after < self.window
        ids = tokens.ids[torch.where(known, after, 0)]
        return torch.where(known[:, :, None], ids, self.no_match)

    def rows_of(self, followers: Tensor) -> Tensor:
        """(…, K, Q) → (…, K · Q) rows of the table of guesses."""
        return followers.flatten(-2) + self.first
