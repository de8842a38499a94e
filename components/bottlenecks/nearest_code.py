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
        from abstractinator.components.bottlenecks.nearest_code_triton import nearest_in_tiles

        return nearest_in_tiles(z, codebook)
    return nearest_in_blocks(z, codebook)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def nearest_in_blocks(z: Tensor, codebook: Tensor, *, scratch_bytes: int = 16 << 20) -> Tensor:
    """`nearest_code`, with the best of each block folded into the best so far, in a scratch of at most
    `scratch_bytes`."""
    block = min(len(codebook), 2048)
    rows = max(1, scratch_bytes // (4 * block))
    scratch = z.new_empty(min(rows, len(z)) * block)  # one for all blocks: fresh memory costs page faults
    best = z.new_full((len(z),), float("-inf"))
    indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for first in range(0, len(codebook), block):
        codes = codebook[first : first + block]
        half_norms = codes.square().sum(1) / 2  # exact for whole numbers, so that equally near codes come out equal
        for start in range(0, len(z), rows):
            part = slice(start, min(start + rows, len(z)))
            scores = scratch[: (part.stop - start) * len(codes)].view(-1, len(codes))
            # argmin ‖z − c‖² = argmax z·c − ‖c‖²/2
            score, index = torch.mm(z[part], codes.T, out=scores).sub_(half_norms).max(1)
            closer = score > best[part]
            best[part] = torch.where(closer, score, best[part])
            indices[part] = torch.where(closer, index + first, indices[part])
    return indices
