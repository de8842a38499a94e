"""Which optimizer moves which parameter.

Muon (Jordan et al. 2024; momentum, then the update made orthogonal) on the matrices inside the model, AdamW
on the rest: embeddings, output layers, norms, biases and matrices with a very small side. Measured gain: see
notes.md.
"""

from __future__ import annotations

import torch
from torch import nn

from abstractinator.training.muon import Muon

_OUTPUT_LAYERS = ("to_logits", "lm_head")  # as they are called here and in transformers
_SMALL_SIDE = 32  # an orthogonal update of a 384×9 matrix would move all of it at once


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, everything else for AdamW), in the model's order, trainable parameters only."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    hidden = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not any(layer in name for layer in _OUTPUT_LAYERS)
        and min(module.weight.shape) >= _SMALL_SIDE
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if id(parameter) in hidden else rest).append(parameter)
    return matrices, rest


def build_optimizers(
    model: nn.Module, *, learning_rate: float, muon_learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW at `learning_rate` and, where the model has hidden matrices, Muon at `muon_learning_rate`.

    weight_decay applies to matrices alone. A model whose every parameter is frozen gives no optimizer.
    """
    matrices, rest = split_parameters(model)
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0))
    if matrices:
        optimizers.append(Muon(matrices, lr=muon_learning_rate, momentum=0.95, weight_decay=weight_decay))
    return optimizers
