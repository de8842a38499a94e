"""Nearest-code search: equal to the definition, whatever the blocks, and never a tensor of vectors times codes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from abstractinator.components.bottlenecks.codebooks import EMACodebook
from abstractinator.components.bottlenecks.nearest_code import nearest_code, nearest_in_blocks

Search = Callable[[Tensor, Tensor], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Search:
    """The Triton kernel, interpreted where there is no GPU, with tiles so small that a few vectors need many."""
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    from abstractinator.components.bottlenecks import nearest_code_triton

    for name, size in (("_VECTORS", 16), ("_CODES", 16), ("_WIDTH", 16), ("_STRETCH", 64)):
        monkeypatch.setattr(nearest_code_triton, name, size)
    return lambda z, codebook: nearest_code_triton.nearest_in_tiles(z.to(DEVICE), codebook.to(DEVICE)).cpu()


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def check(search: Search, vectors: int, codes: int, width: int, dtype: torch.dtype = torch.float32) -> None:
    """What is found is as near as the nearest; all values are such that both dtypes hold their products exactly."""
    torch.manual_seed(vectors + codes)
    z, codebook = (torch.randint(-8, 9, (count, width)).to(dtype) for count in (vectors, codes))
    got = search(z, codebook)
    assert got.shape == (vectors,) and got.dtype == torch.int64
    distances = (z[:, None].double() - codebook[None].double()).square().sum(-1)
    first_of_the_nearest = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(got, first_of_the_nearest)


@settings(max_examples=40)
@example(5, 4, 2, 2000)  # where a rounded norm would put a later code of the same distance first
@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 2000))
def test_blocks_find_the_nearest(vectors: int, codes: int, width: int, scratch: int) -> None:
    check(lambda z, codebook: nearest_in_blocks(z, codebook, scratch_bytes=scratch), vectors, codes, width)


@pytest.mark.parametrize(
    ("vectors", "codes", "width"),
    [(0, 5, 3), (1, 1, 1), (16, 64, 16), (17, 65, 17), (40, 63, 40), (33, 200, 5), (5, 300, 33)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_tiles_find_the_nearest(tiles: Search, vectors: int, codes: int, width: int, dtype: torch.dtype) -> None:
    check(tiles, vectors, codes, width, dtype)


def test_tiles_read_vectors_that_do_not_lie_one_after_the_other(tiles: Search) -> None:
    check(lambda z, codebook: tiles(z.T.contiguous().T, codebook[:, :5]), 20, 70, 5)
    check(lambda z, codebook: tiles(torch.cat([z, z], 1)[:, :5], codebook), 20, 70, 5)


def test_tiles_refuse_vectors_of_another_type(tiles: Search) -> None:
    with pytest.raises(ValueError, match="of one type"):
        tiles(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float16))


def test_blocks_look_into_every_block_of_codes() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(9000, 16)
    wanted = torch.tensor([0, 4095, 4096, 8191, 8192, 8999, 5, 7000])
    got = nearest_in_blocks(codebook[wanted] + 1e-3, codebook, scratch_bytes=3 * 2 * 4 * 4096)
    assert torch.equal(got, wanted)


def test_a_tie_goes_to_the_first_code(tiles: Search) -> None:
    for search in (nearest_code, tiles):
        assert search(torch.ones(3, 4), torch.ones(9000 if search is nearest_code else 200, 4)).tolist() == [0, 0, 0]


def test_no_vectors_times_codes_array_is_made() -> None:
    vectors, codes, width = 512, 8192, 8
    z, codebook = torch.randn(vectors, width), torch.randn(codes, width)
    with LargestTensor() as watch:
        nearest_in_blocks(z, codebook, scratch_bytes=1 << 20)
    assert watch.elements <= (1 << 20) // 4
    assert watch.elements < vectors * codes / 4

    book = EMACodebook(codes, width, decay=0.9, revive_after=0.05)
    with LargestTensor() as watch:
        book(z)
    assert watch.elements < vectors * codes
