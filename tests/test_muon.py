"""Muon: its rule, its agreement with the library's, and its speed without bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from abstractinator.training import muon
from abstractinator.training.muon import Muon, orthogonal

SHAPES = [(64, 32), (64, 32), (32, 64), (48, 48)]


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has bf16 computes in it, which would be another result on another machine."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: False)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_of_the_iteration_agree(shape: tuple[int, int]) -> None:
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    wide = matrix if shape[0] <= shape[1] else matrix.mT
    scaled = wide / wide.norm(dim=(1, 2), keepdim=True)
    assert torch.allclose(muon._iterate(scaled, 5), muon._product_of_gram(scaled @ scaled.mT, 5) @ scaled, atol=1e-4)


def matrices(seed: int) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    (found,) = orthogonal([matrix])
    values = torch.linalg.svdvals(found)
    assert found.shape == matrix.shape and found.dtype == matrix.dtype
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.cosine_similarity(found.flatten(1), (u @ vt).flatten(1)).min() > 0.96


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonal([torch.zeros(1, 8, 4)])[0].any()


@pytest.mark.parametrize("bf16", [False, True])
def test_matrices_that_go_together_do_not_mix(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: bf16)
    random = torch.Generator().manual_seed(1)
    stacks = [torch.randn(shape, generator=random) for shape in [(3, 16, 8), (2, 8, 8), (1, 8, 20)]]
    for stack, together in zip(stacks, orthogonal(stacks), strict=True):
        assert together.shape == stack.shape
        for matrix, found in zip(stack, together, strict=True):
            assert torch.allclose(found, orthogonal([matrix[None]])[0][0], atol=1e-2 if bf16 else 1e-5)


def test_steps_are_the_librarys_up_to_its_bf16() -> None:
    ours, theirs = matrices(0), matrices(0)
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(5):
        for mine, other, gradient in zip(ours, theirs, matrices(step + 1), strict=True):
            mine.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, matrices(0), strict=True):
        assert torch.allclose(mine, other, atol=0.05 * 0.02)
        assert (mine - before).abs().max() > 0.02


def test_matrices_without_a_gradient_stay() -> None:
    moved, kept = matrices(0)[:2]
    before = kept.detach().clone()
    moved.grad = torch.ones_like(moved)
    optimizer = Muon([moved, kept], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(kept, before) and kept not in optimizer.state


def test_a_saved_state_goes_on_alike() -> None:
    ours = matrices(0)
    optimizer = Muon(ours, lr=0.1)
    for p in ours:
        p.grad = torch.ones_like(p)
    optimizer.step()
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    other = Muon(again, lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(ours, again, strict=True):
        q.grad = p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, again, strict=True))


def test_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="steps"):
        Muon(matrices(0), lr=0.1, steps=0)


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match="AdamW"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_the_weights_of_a_convolution_count_as_matrices() -> None:
    (matrix,) = matrices(0)[:1]
    kernel = nn.Parameter(matrix.detach().clone().view(64, 8, 4))
    matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(4))
    kernel.grad = matrix.grad.clone().view(kernel.shape)
    for parameter in (matrix, kernel):
        Muon([parameter], lr=0.1, weight_decay=0.1).step()
    assert torch.allclose(kernel.view(matrix.shape), matrix, atol=1e-6)
