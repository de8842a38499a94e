"""Muon (Jordan et al. 2024): momentum, then the update made orthogonal; for the matrices inside a model.

torch.optim.Muon takes one matrix after the other and always computes in bf16, which processors without it emulate a
hundred times more slowly than fp32. Here matrices of one shape are taken together, in the precision that the
device is fast in.
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
    """θ ← (1 − lr·weight_decay)·θ − lr·√max(1, rows/columns)·orthogonal(g + momentum·b), b the mean of gradients.

    params: matrices. lr: of a matrix that is square. The same rule as torch.optim.Muon's, whose states it reads.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon moves matrices only; give everything else to AdamW")

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
            for same in by_shape.values():
                self._move(same, group)
        return loss

    def _move(self, same: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape, together."""
        momentum, lr = group["momentum"], group["lr"]
        gradients = [p.grad for p in same if p.grad is not None]
        for p in same:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in same]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = orthogonal(torch.stack(torch._foreach_lerp(gradients, buffers, momentum)), group["steps"])
        rows, columns = same[0].shape
        torch._foreach_mul_(same, 1 - lr * group["weight_decay"])
        torch._foreach_add_(same, updates.unbind(), alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(G, rows, columns) → about U·Vᵀ of each matrix U·Σ·Vᵀ, by `steps` of Newton and Schulz's iteration

    X ← P·X with P = a + b·A + c·A² and A = XXᵀ. The result has the matrices' type.
    """
    in_bf16 = has_bfloat16(matrices.device)
    x = matrices.bfloat16() if in_bf16 else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = _iterate(x, steps) if in_bf16 else _iterate_on_gram(x, steps)
    return (x.mT if tall else x).to(matrices.dtype)


def _iterate(x: Tensor, steps: int) -> Tensor:
    """As it is written: each step measures A anew, so that rounding to bf16 adds up to little."""
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_on_gram(x: Tensor, steps: int) -> Tensor:
    """The same on A alone, as all of its polynomials commute: A ← P·A·P, and X ← (∏ P)·X once at the end. Of a wide
    matrix A is the small side; half the work, for which fp32 is exact enough."""
    a, b, c = _COEFFICIENTS
    gram, product = x @ x.mT, None
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if step < steps - 1:
            gram = p @ gram @ p
    return x if product is None else product @ x
