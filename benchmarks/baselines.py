"""The models of the suite by name: how each is sized, at which rates it learns, and how its positions are counted.

All are kinds of model that the frame trains, saves, loads and scores alike; this is what the suite needs in addition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from abstractinator import registry
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.tokens import pack_bytes
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract.model import Model
from benchmarks.kinds.base import Baseline, Setting
from benchmarks.ours import AUTOENCODER_FRACTION, sized_config

OURS = "abstractinator"
NAMES = (OURS, "flat", "flat-window", "blt", "megabyte", "h-net", "bpe-llama")


@dataclass(frozen=True)
class Rates:
    """AdamW's and Muon's learning rates, from which a sweep starts."""

    learning_rate: float
    muon_learning_rate: float


def class_of(name: str) -> type[Model]:
    """The class of a model of the suite. Raises ImportError where its package is missing."""
    return HierarchicalAELM if name == OURS else registry.class_of(name)


def sized(name: str, setting: Setting, autoencoder_fraction: float = AUTOENCODER_FRACTION) -> Any:
    """The settings of the model at `setting.parameters` ± 5 %; autoencoder_fraction is a setting of ours alone. Raises
    ValueError where no settings fit."""
    if name == OURS:
        return replace(sized_config(setting.parameters), autoencoder_fraction=autoencoder_fraction)
    return _baseline(name).sized(setting)


def rates_of(name: str) -> Rates:
    """Its own rates."""
    if name == OURS:
        return Rates(ExperimentConfig.learning_rate, ExperimentConfig.muon_learning_rate)
    kind = _baseline(name)
    return Rates(kind.learning_rate, kind.muon_learning_rate)


def remark_of(name: str) -> str:
    """What a reader of the table must know."""
    return "" if name == OURS else _baseline(name).remark


def modes_of(name: str) -> tuple[str, ...]:
    """The ways in which it generates, the one that samples its own distribution of bytes first."""
    return ("exact", "speculative", "plan") if name == OURS else _baseline(name).modes


def positions_of(model: Model, rows: Tensor) -> int:
    """How many positions of the main network rows (B, N) take, BOS and EOS among them and PAD not."""
    if isinstance(model, Baseline):
        return model.positions(rows)
    assert isinstance(model, HierarchicalAELM)
    return model.compress(pack_bytes(rows))[-1].codes.packing.total


def _baseline(name: str) -> type[Baseline]:
    kind = registry.class_of(name)
    assert issubclass(kind, Baseline)
    return kind
