"""Hashes of tokens, for n-gram tables and for finding equal segments: the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

# Odd 64-bit multipliers (splitmix64's and Knuth's); products wrap around, which is the mixing.
_MIX = -7046029254386353131
_SPREAD = 6364136223846793005


def mix(state: Tensor, value: Tensor) -> Tensor:
    """One round of a multiplicative hash on int64, equal on every machine."""
    state = (state ^ value) * _MIX
    return (state ^ ((state >> 29) & 0x7FFFFFFFF)) * _SPREAD


def token_hash(ids: Tensor) -> Tensor:
    """(…, Q) token ids → (…,) one 64-bit number a token."""
    state = torch.zeros_like(ids[..., 0])
    for slot in range(ids.shape[-1]):
        state = mix(state, ids[..., slot] + 1)
    return state
