"""Which optimizer moves which parameter: Muon (Jordan et al. 2024) the weights of hidden layers, AdamW the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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


def load_states(optimizers: list[torch.optim.Optimizer], saved: list[Mapping[str, Any]]) -> None:
    """Gives each optimizer its saved states; rates and other settings stay. Raises ValueError where they do not fit."""
    if len(saved) != len(optimizers):
        raise ValueError(f"it has states of {len(saved)} optimizers, and this model trains with {len(optimizers)}")
    if not any(one["state"] for one in saved):
        raise ValueError("it has no states of the optimizers")
    for optimizer, one in zip(optimizers, saved, strict=True):
        _check_states(optimizer, one["state"])
        optimizer.load_state_dict({"state": one["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def _check_states(optimizer: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises ValueError unless each state is of a parameter, and all its tensors are finite and of its shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"momentum_buffer"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
    for index, state in states.items():
        where = f"the state of {type(optimizer).__name__} for its parameter {index}"
        if index not in range(len(parameters)) or not isinstance(state, Mapping) or set(state) != names:
            raise ValueError(f"{where} is not one of this model")
        for name, value in state.items():
            shape = torch.Size() if name == "step" else parameters[index].shape
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(f"{where}: {name} is not a tensor of shape {tuple(shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{where}: {name} has values that are infinite or NaN")
