"""Hashes of tokens, for n-gram tables and for finding equal segments: the same on every machine."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Odd 64-bit multipliers (splitmix64's and Knuth's); products wrap around, which is the mixing.
_MIX = -7046029254386353131
_SPREAD = 6364136223846793005


def mix(state: Tensor, value: Tensor | int) -> Tensor:
    """One round of a multiplicative hash on int64, equal on every machine."""
    state = (state ^ value) * _MIX
    return (state ^ ((state >> 29) & 0x7FFFFFFFF)) * _SPREAD


def token_hash(ids: Tensor) -> Tensor:
    """(…, Q) token ids → (…,) one 64-bit number a token: a polynomial of the slots, mixed."""
    return mix(((ids + 1) * _powers(ids.shape[-1], ids.device)).sum(-1), 0)


def ngram_hashes(past: Tensor) -> Tensor:
    """(…, reach) hashes of the tokens t, t-1, … → (…, reach) of the 1-gram, 2-gram, … that end at t.

    Before they are mixed they are the beginnings of one polynomial, so all of them cost one sum.
    """
    reach, device = past.shape[-1], past.device
    return mix((past * _powers(reach, device)).cumsum(-1), _sizes(reach, device))


@cache
def _sizes(reach: int, device: torch.device) -> Tensor:
    """(reach,) 1, 2, …"""
    with torch.inference_mode(False):  # what is cached must serve training, too
        return torch.arange(1, reach + 1, device=device)


@cache
def _powers(count: int, device: torch.device) -> Tensor:
    """(count,) powers of an odd number, modulo 2⁶⁴."""
    powers = [1]
    while len(powers) < count:
        powers.append(powers[-1] * _SPREAD % 2**64)
    with torch.inference_mode(False):  # what is cached must serve training, too
        return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers], device=device)
