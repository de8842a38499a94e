"""The model of a checkpoint, of any kind, and whether a checkpoint fits the settings of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from abstractinator import __version__, registry
from abstractinator.checkpoints.checkpoint_file import load_checkpoint, map_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.config.settings import build, to_dict
from abstractinator.contract.file_tokenizer import tokenizer_of
from abstractinator.contract.model import Model
from abstractinator.contract.tokenizer import Tokenizer

# What may be computed and not saved, such as a table of positions.
_DERIVED_TENSORS, _DERIVED_NUMBERS = 64, 1 << 24
_LONGEST_REASON = 200  # characters
_TOO_LARGE = "its settings describe a larger model than its weights"
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange, torch.full)


def load_model(path: str | Path, device: torch.device) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, or of the newest one in a folder, in eval mode, and the checkpoint's other contents.

    Raises CheckpointError.
    """
    path = latest_checkpoint(path) or Path(path)
    payload = load_checkpoint(path)
    check_weights(payload, path)
    weights = payload.pop("model")
    with _refused(path, payload):
        model = _built(_builder(payload), weights)
        model.load_state_dict(weights)
    return model.to(device).eval(), payload


def describe_model(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """As `load_model`, but the weights stay in the file and are not checked: for what a model is, not for its use."""
    path = latest_checkpoint(path) or Path(path)
    payload = map_checkpoint(path)
    with _refused(path, payload):
        weights = payload.pop("model")
        model = _built(_builder(payload), weights)
        model.load_state_dict(weights, assign=True)
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
            f"version {payload.get('version', 'unknown')}: {_shortened(error)}"
        ) from error


def _shortened(error: Exception) -> str:
    """The beginning of an error's text in one line; of a torch error about weights, with the first of their names."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"


def _builder(payload: dict[str, Any]) -> Callable[[], Model]:
    settings = payload["config"]["model"]
    config: Any = build(registry.config_of(settings["kind"]), settings)
    tokenizer = tokenizer_of(payload.get("tokenizer"))
    return lambda: registry.new_model(config, tokenizer)


def _built(new: Callable[[], Model], weights: Mapping[str, Tensor]) -> Model:
    """The model that is to get `weights`, its parameters without initial values.

    It is built no further than the weights go: settings of a billion layers are refused at once. Raises ValueError
    where the settings describe a larger model.
    """
    # Twice as much as there is: a parameter that two layers share is registered twice.
    tensors = 2 * len(weights) + _DERIVED_TENSORS
    numbers = largest = 2 * sum(tensor.numel() for tensor in weights.values()) + _DERIVED_NUMBERS

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is not None:
            tensors -= 1
            numbers -= tensor.numel()
        if min(tensors, numbers) < 0:
            raise ValueError(_TOO_LARGE)

    hooks = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        with _Bounded(largest):
            return new()
    finally:
        for hook in hooks:
            hook.remove()


class _Bounded(TorchFunctionMode):
    """Refuses a tensor of more than `largest` numbers before it is made, and leaves parameters as they are allocated:
    torch.nn.init does nothing. (On torch's device `meta` nothing would be made at all, but it needs torch's compiler,
    whose import takes longer than the rest of loading a model.)"""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        if function in _FACTORIES and _size(function, args, kwargs) > self.largest:
            raise ValueError(_TOO_LARGE)
        return function(*args, **kwargs)


def _size(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | float:
    """How many numbers a call of one of _FACTORIES makes, at most (by steps of 1)."""
    if function is torch.arange:
        return sum(abs(bound) for bound in (*args[:2], kwargs.get("start", 0), kwargs.get("end", 0)))
    return math.prod(kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args))


def check_same_tokenizer(payload: dict[str, Any], tokenizer: Tokenizer, path: Path) -> None:
    """Raises CheckpointError where a checkpoint was trained on other tokens."""
    saved = payload.get("tokenizer")
    if saved == tokenizer.source:
        return
    if saved is None:
        advice = "it was trained on bytes; resume without data.tokenizer"
    elif tokenizer.source is None:
        advice = "it was trained on the tokens of a file; resume with the same file as data.tokenizer"
    else:
        advice = "it was trained on the tokens of another file; resume with that one as data.tokenizer"
    raise CheckpointError(f"{path} does not fit the tokenizer: {advice}, or start a new run")


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
