"""Nearest-code search as one Triton kernel (Tillet et al. 2019, doi 10.1145/3315508.3329973).

A program takes a tile of vectors and a stretch of the codebook, multiplies tile by tile in the tensor cores, and keeps
of each tile's scores only the best of each vector: neither N×K scores nor their tiles are ever written. The stretches'
results, N a stretch, are compared at the end. Runs on a CPU under TRITON_INTERPRET=1, as the tests do.

Letters: N vectors, D width, K codes, P stretches of the codebook.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_VECTORS, _CODES, _WIDTH = 128, 128, 64  # of a tile
_STRETCH = 4096  # codes that a program reads, at most: so there are enough programs also where vectors are few


def nearest_in_tiles(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook row of each vector; z: (N, D), codebook: (K, D), of one type → (N,) int64.

    fp32 is multiplied as three products of TF32 parts, which is exact to fp32's rounding; bf16 and fp16 as they are,
    with sums in fp32.
    """
    if z.dtype != codebook.dtype:
        raise ValueError(f"vectors and codebook must be of one type, not {z.dtype} and {codebook.dtype}")
    (vectors, width), codes = z.shape, len(codebook)
    stretches = triton.cdiv(codes, _STRETCH)
    stretch = triton.cdiv(triton.cdiv(codes, stretches), _CODES) * _CODES  # the last one is not much shorter
    half_norms = codebook.float().square().sum(1) / 2
    best = torch.empty(stretches, vectors, dtype=torch.float32, device=z.device)
    where = torch.empty(stretches, vectors, dtype=torch.int64, device=z.device)
    if not vectors:
        return where[0]
    _nearest[(triton.cdiv(vectors, _VECTORS), stretches)](
        z,
        codebook,
        half_norms,
        best,
        where,
        vectors,
        codes,
        *z.stride(),
        *codebook.stride(),
        width=width,
        stretch=stretch,
        tile_vectors=_VECTORS,
        tile_codes=_CODES,
        tile_width=_WIDTH,
        num_warps=8,
        num_stages=3,
    )
    return where.gather(0, best.argmax(0, keepdim=True))[0]


@triton.jit
def _nearest(  # type: ignore[no-untyped-def]
    z,
    codebook,
    half_norms,
    best_out,
    where_out,
    vectors,
    codes,
    z_row,
    z_column,
    code_row,
    code_column,
    width: tl.constexpr,
    stretch: tl.constexpr,
    tile_vectors: tl.constexpr,
    tile_codes: tl.constexpr,
    tile_width: tl.constexpr,
):
    """best_out, where_out: (P, N), of each stretch the best score z·c − ‖c‖²/2 and the code that has it."""
    row = tl.program_id(0) * tile_vectors + tl.arange(0, tile_vectors)
    begin = tl.program_id(1) * stretch
    best = tl.full((tile_vectors,), float("-inf"), tl.float32)
    where = tl.full((tile_vectors,), 0, tl.int64) + begin
    for offset in range(0, stretch, tile_codes):
        first = begin + offset
        code = first + tl.arange(0, tile_codes)
        scores = tl.zeros((tile_vectors, tile_codes), tl.float32)
        for start in range(0, width, tile_width):
            column = start + tl.arange(0, tile_width)
            part = tl.load(
                z + row[:, None].to(tl.int64) * z_row + column[None, :] * z_column,
                mask=(row < vectors)[:, None] & (column < width)[None, :],
                other=0.0,
            )
            tile = tl.load(
                codebook + code[None, :].to(tl.int64) * code_row + column[:, None] * code_column,
                mask=(code < codes)[None, :] & (column < width)[:, None],
                other=0.0,
            )
            scores = tl.dot(part, tile, scores, input_precision="tf32x3")
        halves = tl.load(half_norms + code, mask=code < codes, other=float("inf"))
        scores = scores - halves[None, :]
        score, at = tl.max(scores, axis=1, return_indices=True)
        closer = score > best
        best = tl.where(closer, score, best)
        where = tl.where(closer, at.to(tl.int64) + first, where)
    tl.store(best_out + tl.program_id(1) * vectors + row, best, mask=row < vectors)
    tl.store(where_out + tl.program_id(1) * vectors + row, where, mask=row < vectors)
