"""Which optimizer moves which parameter: Muon (Jordan et al. 2024) the weights of hidden layers, AdamW the rest."""

from __future__ import annotations

import torch

from abstractinator.contract.model import Model
from abstractinator.training.muon import Muon


def build_optimizers(
    model: Model, *, learning_rate: float, muon_learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW at `learning_rate`, and Muon at `muon_learning_rate` where the model has weights for it.

    weight_decay applies to Muon's weights alone. A model whose every parameter is frozen gives no optimizer.
    """
    hidden = model.muon_parameters()
    chosen = {id(parameter) for parameter in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0))
    if hidden:
        optimizers.append(Muon(hidden, lr=muon_learning_rate, momentum=0.95, weight_decay=weight_decay))
    return optimizers


def learning_rates(optimizers: list[torch.optim.Optimizer]) -> dict[str, float]:
    """The rates in force, by the names of the settings."""
    return {
        "muon_learning_rate" if isinstance(one, Muon) else "learning_rate": one.param_groups[0]["lr"]
        for one in optimizers
    }
