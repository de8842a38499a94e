"""The model of a checkpoint, of any kind, and whether a checkpoint fits the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from abstractinator import __version__, registry
from abstractinator.checkpoints.checkpoint_file import load_checkpoint, map_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.config.settings import build, to_dict
from abstractinator.contract.model import Model
from abstractinator.messages import first_line

# What may be computed and not saved, such as a table of positions.
_DERIVED_TENSORS, _DERIVED_NUMBERS = 64, 1 << 24


def load_model(path: str | Path, device: torch.device) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, or of the newest one in a folder, in eval mode, and the checkpoint's other contents.

    Raises CheckpointError.
    """
    path = latest_checkpoint(path) or Path(path)
    payload = load_checkpoint(path)
    check_weights(payload, path)
    weights = payload.pop("model")
    with _refused(path, payload):
        new = _builder(payload)
        _outline(new, weights)  # first: what the settings describe has the size of the weights
        model = new()
        model.load_state_dict(weights)
    return model.to(device).eval(), payload


def describe_model(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """As `load_model`, but the weights stay in the file and are not checked: for what a model is, not for its use."""
    path = latest_checkpoint(path) or Path(path)
    payload = map_checkpoint(path)
    with _refused(path, payload):
        model = _outline(_builder(payload), payload.pop("model"))
    return model.eval(), payload


def check_weights(payload: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError where a checkpoint has no weights, or weights that are infinite or NaN."""
    weights = payload.get("model")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} does not hold a model; use another checkpoint")
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: the weight {name} has values that are infinite or NaN; use an earlier checkpoint"
            )


@contextmanager
def _refused(path: Path, payload: dict[str, Any]) -> Iterator[None]:
    """Turns what goes wrong while a model is built into one line."""
    try:
        yield
    except Exception as error:  # the file may be of any origin, and a kind may raise any error
        raise CheckpointError(
            f"{path} does not hold a model that this version ({__version__}) can build; it was written by "
            f"version {payload.get('version', 'unknown')}: {first_line(error)}"
        ) from error


def _builder(payload: dict[str, Any]) -> Callable[[], Model]:
    settings = payload["config"]["model"]
    kind = registry.class_of(settings["kind"])
    config: Any = build(kind.Config, settings)
    return lambda: kind(config)


def _outline(new: Callable[[], Model], weights: Mapping[str, Tensor]) -> Model:
    """The model with `weights` themselves as its own; what is computed and not saved has no values.

    It is built without memory, and no further than the weights go: settings of a billion layers are refused at once.
    Raises ValueError and RuntimeError where the settings describe another model.
    """
    # Twice as much as there is: a parameter that two layers share is registered twice.
    tensors = 2 * len(weights) + _DERIVED_TENSORS
    numbers = 2 * sum(tensor.numel() for tensor in weights.values()) + _DERIVED_NUMBERS

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is not None:
            tensors -= 1
            numbers -= tensor.numel()
        if min(tensors, numbers) < 0:
            raise ValueError("its settings describe a larger model than its weights")

    hooks = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        with torch.device("meta"):
            model = new()
    finally:
        for hook in hooks:
            hook.remove()
    model.load_state_dict(weights, assign=True)
    return model


def check_same_model(payload: dict[str, Any], model_config: Any, path: Path) -> None:
    """Raises CheckpointError where a checkpoint is of another model than the settings: what only steers the training
    (TRAINING_ONLY) may differ, everything else says what the weights mean."""
    config = payload.get("config")
    saved = config.get("model") if isinstance(config, dict) else None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds no settings of a model; use another checkpoint")
    if saved.get("kind") != model_config.kind:
        raise CheckpointError(
            f"{path} is of kind {saved.get('kind')}, and model.kind is {model_config.kind}; resume with "
            f"model.kind={saved.get('kind')}, or start a new run without resume_from_checkpoint"
        )
    if different := sorted(_differences(saved, model_config, "model")):
        raise CheckpointError(
            f"{path} is of another model; these settings differ: {', '.join(different[:8])}. Resume with the "
            "settings it was trained with, or start a new run without resume_from_checkpoint"
        )


def _differences(saved: Any, now: Any, where: str) -> list[str]:
    """Dotted paths of settings that differ; `saved` is plain, `now` a dataclass or what its fields hold."""
    if dataclasses.is_dataclass(now) and isinstance(saved, dict):
        fields = [field for field in dataclasses.fields(now) if not field.metadata.get("training_only")]
        known = {field.name for field in dataclasses.fields(now)}
        different = [f"{where}.{name}" for name in saved.keys() - known]
        for field in fields:
            different += _differences(saved.get(field.name), getattr(now, field.name), f"{where}.{field.name}")
        return different
    if isinstance(now, list | tuple) and isinstance(saved, list) and len(saved) == len(now):
        return [d for i, (a, b) in enumerate(zip(saved, now, strict=True)) for d in _differences(a, b, f"{where}.{i}")]
    return [] if saved == _plain(now) else [where]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
