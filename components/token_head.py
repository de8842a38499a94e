"""From hidden vectors to distributions over tokens, and to "no token": the end.

Letters: T positions, D width, Q slots, K codes in a codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import ResidualMLP, RMSNorm

IGNORED = -100  # a target that is not scored
_CHUNK_LOGITS = 1 << 26  # 256 MB in fp32


def targets_of(tokens: Tokens) -> Tensor:
    """What a language model of these tokens has to predict: (T, Q).

    EOS is the class K ("end") of slot 0. BOS is never predicted, nor are the further slots of a special token.
    """
    targets = tokens.ids.masked_fill(tokens.special[:, None], IGNORED)
    targets[:, 0].masked_fill_(tokens.ids[:, 0] == tokens.vocabulary.eos, tokens.vocabulary.codebook_size)
    return targets


class ParallelHead(nn.Module):
    """Slots independent of each other given the hidden vector: one pass, which expands a whole code."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.to_logits = nn.Linear(width, vocabulary.slots * vocabulary.codebook_size + 1)

    @property
    def classes(self) -> int:
        """Number of logits of a position, of all slots."""
        return self.to_logits.out_features

    def logits(self, hidden: Tensor) -> list[Tensor]:
        """hidden: (…, D) → for slot 0 (…, K + 1) with "end" as class K, for the others (…, K); fp32."""
        size = self.vocabulary.codebook_size
        flat = self.to_logits(hidden).float()
        slots = [flat[..., slot * size : (slot + 1) * size] for slot in range(1, self.vocabulary.slots)]
        return [torch.cat([flat[..., :size], flat[..., -1:]], dim=-1) if slots else flat, *slots]

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """−log p of targets (T, Q), IGNORED where nothing is scored → (T,)."""
        return chunked(lambda x, y: nll_of(self.logits(x), y), hidden, targets, self.classes)


class DepthHead(nn.Module):
    """Slot q given the hidden vector and the slots before it: an exact joint distribution of the token.

    p(c_1 … c_Q | h) = Π p(c_q | h, c_1 … c_(q-1)), as RQ-Transformer does (Lee et al. 2022, arXiv 2203.01941),
    with a small block in place of the depth transformer. With one slot it is a linear layer.
    """

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        size, slots = vocabulary.codebook_size, vocabulary.slots
        earlier = nn.ModuleList(nn.Embedding(size, width) for _ in range(slots - 1))
        blocks = nn.ModuleList(nn.Sequential(ResidualMLP(width, width), RMSNorm(width)) for _ in range(slots - 1))
        to_logits = nn.ModuleList(nn.Linear(width, size + (slot == 0), bias=False) for slot in range(slots))
        self.earlier = cast(Sequence[nn.Embedding], earlier)
        self.blocks = cast(Sequence[nn.Sequential], blocks)
        self.to_logits = cast(Sequence[nn.Linear], to_logits)

    @property
    def classes(self) -> int:
        """Number of logits of a position, of all slots."""
        return sum(layer.out_features for layer in self.to_logits)

    def slot_logits(self, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Logits of slot q; hidden (…, D), earlier (…, q) codes → (…, K + 1) or, for q > 0, (…, K), fp32."""
        slot = earlier.shape[-1]
        if slot:
            for before in range(slot):
                hidden = hidden + self.earlier[before](earlier[..., before])
            hidden = self.blocks[slot - 1](hidden)
        return self.to_logits[slot](hidden).float()

    def logits(self, hidden: Tensor, targets: Tensor) -> list[Tensor]:
        """Logits of every slot, the true earlier slots given (targets below 0 count as code 0)."""
        known = targets.clamp(min=0, max=self.vocabulary.codebook_size - 1)
        return [self.slot_logits(hidden, known[:, :slot]) for slot in range(self.vocabulary.slots)]

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """−log p of targets (T, Q), IGNORED where nothing is scored → (T,)."""
        return chunked(lambda x, y: nll_of(self.logits(x, y), y), hidden, targets, self.classes)


def nll_of(logits: list[Tensor], targets: Tensor) -> Tensor:
    """−log p of targets (T, Q) from the logits of each slot, IGNORED where nothing is scored → (T,)."""
    return torch.stack([F.cross_entropy(x, targets[:, slot], reduction="none") for slot, x in enumerate(logits)]).sum(0)


def chunked(function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, classes: int) -> Tensor:
    """function(hidden (T, D), targets (T, Q)) → (T, …), in parts of at most _CHUNK_LOGITS logits, of which each
    vector has `classes`.

    With a large codebook the logits of a batch would take more memory than all the rest; those of a part are
    recomputed in the backward pass.
    """
    rows = max(1, _CHUNK_LOGITS // classes)
    if len(hidden) <= rows:
        return function(hidden, targets)
    parts, kind = zip(hidden.split(rows), targets.split(rows), strict=True), hidden.device.type
    # Of one cached copy of a weight in half precision the parts' gradients would be summed in half precision.
    with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
        return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
