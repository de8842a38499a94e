"""Two losses that spread vectors over the unit sphere, so that different texts lie far apart.

Letters: B vectors, d their width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = -1e4  # in place of -∞, whose gradient is undefined where all others are left out


def unit_rows(vectors: Tensor) -> Tensor:
    """(B, d) → (B, d) fp32 of length 1; a row of zeros stays one."""
    return F.normalize(vectors.float(), dim=-1)


def total_coding_rate(vectors: Tensor, epsilon: float) -> Tensor:
    """R = ½ log det(I + d / (B ε²) ZᵀZ) in nats, for the rows Z of `vectors` (B, d) on the unit sphere; fp32.

    The bits, but for the base, that it takes to code the rows up to a distortion ε (Ma et al. 2007); the larger, the
    more evenly they are spread. Training minimises -R (Li et al. 2022; the seed of this model prints the other sign,
    which would draw all vectors together). For B < d it is computed from ZZᵀ, which has the same determinant and is
    smaller. Raises ValueError for fewer than two rows, which cannot be apart.
    """
    count, width = vectors.shape
    if count < 2:
        raise ValueError(f"the total coding rate compares texts and needs at least 2 of them, not {count}")
    with torch.autocast(vectors.device.type, enabled=False):
        z = unit_rows(vectors)
        gram = z @ z.t() if count < width else z.t() @ z
        eye = torch.eye(len(gram), device=z.device)
        return 0.5 * torch.logdet(eye + width / (count * epsilon**2) * gram)


def largest_coding_rate(count: int, width: int, epsilon: float) -> float:
    """The largest R of B vectors of width d: all eigenvalues of the smaller Gram matrix are equal.

    For d ≤ B it is (d/2) log(1 + 1/ε²), for B < d it is (B/2) log(1 + d / (B ε²)).
    """
    rank = min(count, width)
    return 0.5 * rank * math.log1p(width / (rank * epsilon**2))


def repulsive_infonce(vectors: Tensor, temperature: float) -> Tensor:
    """(1/B) Σ_i log Σ_{j≠i} exp(cos(v_i, v_j) / τ), in fp32: the repulsive part of InfoNCE (Chen et al. 2020).

    Raises ValueError for fewer than two rows.
    """
    count = len(vectors)
    if count < 2:
        raise ValueError(f"InfoNCE compares texts and needs at least 2 of them, not {count}")
    with torch.autocast(vectors.device.type, enabled=False):
        z = unit_rows(vectors)
        similar = z @ z.t() / temperature
        own = torch.eye(count, dtype=torch.bool, device=z.device)
        return similar.masked_fill(own, -math.inf).logsumexp(-1).mean()


def attraction(vectors: Tensor, neighbours: Tensor, temperature: float) -> Tensor:
    """-log of the share of each vector's neighbours among all vectors, summed over pairs (InfoNCE with attraction).

    vectors: (B, d). neighbours: (B, B) bool, true where j is a neighbour of i; several neighbours of one vector do not
    compete with one another. → a scalar in fp32, the mean over all pairs; 0 without a pair.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        z = unit_rows(vectors)
        similar = z @ z.t() / temperature
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        others = similar.masked_fill(own | neighbours, _FAR).logsumexp(-1, keepdim=True)
        costs = torch.logaddexp(similar, others) - similar  # of each pair, against all that are no neighbours
        return costs.masked_fill(~neighbours, 0.0).sum() / neighbours.sum().clamp(min=1)
