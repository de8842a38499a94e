"""Muon (Jordan et al. 2024): momentum, then an orthogonalized update; for the weights of hidden layers.

torch.optim.Muon updates one matrix after the other and always computes in bf16, which a processor without bf16 emulates
a hundred times more slowly than fp32. Here matrices are batched, in the precision that is fast on the device.
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

    g: the gradient, b: a running mean of gradients. params: matrices, or weights of convolutions, which count as
    matrices of one row an output channel. lr: of a square matrix. The same rule as torch.optim.Muon's, whose states it
    reads.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        if any(p.ndim < 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon updates matrices only; give everything else to AdamW")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the present gradients; a matrix without a gradient stays as it is."""
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
            for (_, device), same in by_shape.items():
                sides = same[0].flatten(1).shape
                together[sides if has_bfloat16(device) else min(sides), device].append(same)
            for stacks in together.values():
                updates = orthogonal([self._updates(same, group["momentum"]) for same in stacks], group["steps"])
                for same, update in zip(stacks, updates, strict=True):
                    rows, columns = same[0].flatten(1).shape
                    torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                    rate = group["lr"] * math.sqrt(max(1, rows / columns))
                    torch._foreach_add_(same, update.view(-1, *same[0].shape).unbind(), alpha=-rate)
        return loss

    def _updates(self, same: list[Tensor], momentum: float) -> Tensor:
        """Weights of one shape → (G, rows, columns) their Nesterov updates, before orthogonalization."""
        gradients = [p.grad for p in same if p.grad is not None]
        for p in same:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in same]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch.stack(torch._foreach_lerp(gradients, buffers, momentum)).flatten(2)


def orthogonal(stacks: list[Tensor], steps: int = 5) -> list[Tensor]:
    """Stacks (G, rows, columns) of matrices with one small side → about U·Vᵀ of each matrix U·Σ·Vᵀ.

    By at least one Newton–Schulz step X ← P·X with P = a + b·A + c·A² and A = XXᵀ. The results have the stacks' types.
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
    """(G, small side, large side), with singular values of at most 1, in the type in which the iteration is fast."""
    x = stack.bfloat16() if has_bfloat16(stack.device) else stack.float()
    x = x.mT if x.shape[1] > x.shape[2] else x
    return x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)


def _iterate(x: Tensor, steps: int) -> Tensor:
    """The definition: each step computes A again, so rounding to bf16 adds up to little."""
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _product_of_gram(gram: Tensor, steps: int) -> Tensor:
    """∏ P, by which all steps multiply X, from the first A alone (G, side, side).

    All polynomials of A commute, so A ← P·A·P. It is half the work, and fp32 is exact enough for it; matrices with the
    same small side are batched, whatever their other side is.
    """
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
