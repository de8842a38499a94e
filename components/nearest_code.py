"""Which code of a codebook is nearest to each vector, without ever holding all distances.

One interface, two kernels, equal to the definition (held by tests):

    nearest_in_blocks                        everywhere: blocks of vectors against blocks of codes
    nearest_code_triton.nearest_in_tiles     CUDA: one kernel, in which scores never leave the chip

Letters: N vectors, D width, K codes.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook row (Euclidean) of each vector, the first of equally near ones.

    z: (N, D), codebook: (K, D), of one type → (N,) int64.
    """
    if z.is_cuda and _has_triton():
        from components.nearest_code_triton import nearest_in_tiles

        return nearest_in_tiles(z, codebook)
    return nearest_in_blocks(z, codebook)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def nearest_in_blocks(z: Tensor, codebook: Tensor, *, scratch_bytes: int = 32 << 20) -> Tensor:
    """`nearest_code`, with the best of each block folded into the best so far, in a scratch of at most so many
    bytes."""
    block = min(len(codebook), 4096)
    rows = max(1, scratch_bytes // (4 * block) // 2)
    half_norms = codebook.square().sum(1) / 2 if len(codebook) <= 4096 else None
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, len(z), rows):
        part = z[start : start + rows]
        best = part.new_full((len(part),), float("-inf"))
        where = torch.zeros(len(part), dtype=torch.int64, device=z.device)
        for first in range(0, len(codebook), block):
            codes = codebook[first : first + block]
            halves = half_norms if half_norms is not None else torch.linalg.vector_norm(codes, dim=1).square() / 2
            # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
            score, index = torch.addmm(halves, part, codes.T, beta=-1).max(1)
            closer = score > best
            best = torch.where(closer, score, best)
            where = torch.where(closer, index + first, where)
        indices[start : start + rows] = where
    return indices
