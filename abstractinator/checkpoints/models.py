"""The model of a checkpoint, of any kind, and whether a checkpoint fits the settings of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from abstractinator import __version__, registry
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.config.settings import build, to_dict
from abstractinator.contract.model import Model


def load_model(path: str | Path, device: torch.device) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, or of the newest one in a folder, in eval mode, and the checkpoint's other contents.

    Raises CheckpointError.
    """
    path = latest_checkpoint(path) or path
    payload = load_checkpoint(path)
    try:
        settings, weights = payload["config"]["model"], payload.pop("model")
        kind = registry.class_of(settings["kind"])
        config: Any = build(kind.Config, settings)
        _check_size(kind, config, weights)
        model = kind(config)
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not hold a model that this version ({__version__}) can build; it was written by "
            f"version {payload.get('version', 'unknown')}: {str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval(), payload


def _check_size(kind: type[Model], config: Any, weights: dict[str, Tensor]) -> None:
    """Raises ValueError where the settings describe a larger model than the file holds, or a weight is not finite.

    The model is built without memory, and no further than the file goes, so that settings of a billion layers are
    refused at once.
    """
    # Twice as much as there is: a parameter that two layers share is registered twice.
    left = {"tensors": 2 * len(weights), "numbers": 2 * sum(tensor.numel() for tensor in weights.values())}

    def count(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left["tensors"] -= 1
            left["numbers"] -= parameter.numel()
        if min(left.values()) < 0:
            raise ValueError("its settings describe a larger model than its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            kind(config)
    finally:
        hook.remove()
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"the weight {name} has values that are infinite or NaN; use an earlier checkpoint")


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
        found = [f"{where}.{name}" for name in saved.keys() - known]
        for field in fields:
            found += _differences(saved.get(field.name), getattr(now, field.name), f"{where}.{field.name}")
        return found
    if isinstance(now, list | tuple) and isinstance(saved, list) and len(saved) == len(now):
        return [d for i, (a, b) in enumerate(zip(saved, now, strict=True)) for d in _differences(a, b, f"{where}.{i}")]
    return [] if saved == _plain(now) else [where]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
