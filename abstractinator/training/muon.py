"""Muon (Jordan et al. 2024): momentum, then the update made orthogonal; for the matrices inside a model.

torch.optim.Muon takes one matrix after the other and always computes in bf16, which processors without it emulate a
hundred times more slowly than fp32. Here matrices are taken together, in the precision that the device is fast in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from abstractinator.device import has_bfloat16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values of 0 … 1 come to lie in 0.7 … 1.2


class Muon(torch.optim.Optimizer):
    """θ ← (1 − lr·weight_decay)·θ − lr·√max(1, rows/columns)·orthogonal((1 − momentum)·g + momentum·b).

    g: the gradient, b: a running mean of gradients. params: matrices. lr: of a matrix that is square. The same rule as
    torch.optim.Muon's, whose states it reads.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon moves matrices only; give everything else to AdamW")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients that are there; matrices without one stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, p.device].append(p)
            together: dict[tuple[Any, torch.device], list[list[Tensor]]] = defaultdict(list)
            for (shape, device), same in by_shape.items():
                together[shape if has_bfloat16(device) else min(shape), device].append(same)
            for stacks in together.values():
                updates = orthogonal([self._updates(same, group["momentum"]) for same in stacks], group["steps"])
                for same, update in zip(stacks, updates, strict=True):
                    rows, columns = same[0].shape
                    torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                    torch._foreach_add_(same, update.unbind(), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
        return loss

    def _updates(self, same: list[Tensor], momentum: float) -> Tensor:
        """Matrices of one shape → (G, rows, columns) their gradients and means of gradients, before they are made
        orthogonal."""
        gradients = [p.grad for p in same if p.grad is not None]
        for p in same:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in same]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch.stack(torch._foreach_lerp(gradients, buffers, momentum))


def orthogonal(stacks: list[Tensor], steps: int = 5) -> list[Tensor]:
    """Stacks (G, rows, columns) of matrices with one small side → about U·Vᵀ of each matrix U·Σ·Vᵀ.

    By `steps`, at least one, of Newton and Schulz's iteration X ← P·X with P = a + b·A + c·A² and A = XXᵀ. The results
    have the stacks' types.
    """
    wide = [_wide_and_scaled(stack) for stack in stacks]
    if has_bfloat16(stacks[0].device):
        wide = [_iterate(x, steps) for x in wide]
    else:
        products = _product_of_gram(torch.cat([x @ x.mT for x in wide]), steps).split([len(x) for x in wide])
        wide = [product @ x for product, x in zip(products, wide, strict=True)]
    return [
        (x.mT if stack.shape[1] > stack.shape[2] else x).to(stack.dtype) for x, stack in zip(wide, stacks, strict=True)
    ]


def _wide_and_scaled(stack: Tensor) -> Tensor:
    """(G, small side, large side), with singular values of at most 1, in the type that the iteration is fast in."""
    x = stack.bfloat16() if has_bfloat16(stack.device) else stack.float()
    x = x.mT if x.shape[1] > x.shape[2] else x
    return x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)


def _iterate(x: Tensor, steps: int) -> Tensor:
    """As it is written: each step measures A anew, so that rounding to bf16 adds up to little."""
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _product_of_gram(gram: Tensor, steps: int) -> Tensor:
    """∏ P, by which X is multiplied in `steps` (at least one), from A of its beginning alone (G, side, side): as all
    polynomials of A commute, A ← P·A·P. Half the work, for which fp32 is exact enough; and matrices with one small side
    go together, whatever their other."""
    a, b, c = _COEFFICIENTS
    product = None
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if step < steps - 1:
            gram = p @ gram @ p
    assert product is not None
    return product
