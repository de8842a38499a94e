"""From the name of a kind of model to its class, which is imported only when it is asked for.

Kinds come from `components.kinds`, from `register`, and from the entry points `abstractinator.kinds` of installed
packages, so another package adds a kind without a change here.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from abstractinator.components.kinds import DEFAULT, KINDS
from abstractinator.messages import first_line

if TYPE_CHECKING:
    from abstractinator.contract.model import Model
    from abstractinator.contract.tokenizer import Tokenizer

__all__ = ["DEFAULT", "class_of", "config_of", "names", "new_model", "register"]

_registered: dict[str, str] = {}


def register(name: str, target: str) -> None:
    """Makes a kind known for this process. target: `module:Class`."""
    _registered[name] = target


def names() -> list[str]:
    """All kinds, those of this package first."""
    return list(_targets())


def class_of(name: str) -> type[Model]:
    """The class of a kind. Raises ValueError for an unknown name and a target that cannot be imported, and
    ModuleNotFoundError where its package is missing."""
    targets = _targets()
    if name not in targets:
        near = difflib.get_close_matches(name, targets, 1)
        advice = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"model.kind must be one of {', '.join(targets)}, not {name!r}{advice}")
    module, _, attribute = targets[name].partition(":")
    try:
        found: type[Model] = getattr(import_module(module), attribute)
        kind = found.kind
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the module may be of any origin, and raise any error
        raise ValueError(f"kind {name} ({targets[name]}) cannot be imported: {first_line(error)}") from error
    if kind != name:
        raise ValueError(f"kind {name} ({targets[name]}) is the class of kind {kind}; use one name for both")
    return found


def new_model(config: Any, tokenizer: Tokenizer) -> Model:
    """A model of the kind that `config` is of, on `tokenizer`. Raises ValueError for another than that of bytes where
    the kind takes none."""
    kind = class_of(config.kind)
    if kind.takes_tokenizer:
        return kind(config, tokenizer)
    if tokenizer.source is not None:
        raise ValueError(f"a model of kind {config.kind} reads bytes and takes no tokenizer; leave data.tokenizer out")
    return kind(config)


def config_of(name: str) -> Any:
    """The dataclass of a kind's settings. Raises as `class_of` does."""
    return class_of(name).Config


def _targets() -> dict[str, str]:
    installed = {entry.name: entry.value for entry in entry_points(group="abstractinator.kinds")}
    return KINDS | installed | _registered
