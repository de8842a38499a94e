"""What a schema of nested dataclasses accepts, and the words for it in an error."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_BOUND = 1 << 63  # of whole numbers: torch takes none beyond
_SCALARS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


class ConfigError(ValueError):
    """A setting the user must correct; the message says which one and how."""


@dataclasses.dataclass(frozen=True)
class ChosenByKind:
    """Marks a field, as `Annotated[Any, ChosenByKind(…)]`, whose dataclass is found by the setting `kind` in it.

    default: the kind where none is given. names: all kinds. config_of: a kind's dataclass, imported when it is asked
    for. Raises ValueError for an unknown kind.
    """

    default: str
    names: Callable[[], list[str]]
    config_of: Callable[[str], Any]


def hints_of(group: Any) -> dict[str, Any]:
    """The settings of a dataclass with their types, in order."""
    hints = get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group) if field.init}


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the type alone."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def element(hint: Any, index: int) -> Any:
    """The type of the entry at `index` of a list or tuple type; Any where the type is neither."""
    for kind in alternatives(hint):
        inner = get_args(kind)
        if get_origin(kind) is list or (get_origin(kind) is tuple and inner[-1] is Ellipsis):
            return inner[0]
        if get_origin(kind) is tuple and index < len(inner):
            return inner[index]
    return Any


def group_of(hint: Any, value: Any = None) -> Any:
    """The dataclass of a type, or None. Of several kinds it is the one that `value`, a dict, names in its `kind`, and
    the first, or default, one where it names none. Raises ConfigError for an unknown kind."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if (choice := choice_of(hint)) is not None:
        try:
            return choice.config_of(choice.default if kind is None else str(kind))
        except ImportError as error:
            raise ConfigError(f"model.kind={kind} needs a package that is not installed ({error})") from error
        except ValueError as error:
            raise ConfigError(str(error)) from error
    groups = [each for each in alternatives(hint) if dataclasses.is_dataclass(each)]
    named = [each for each in groups if kind in kinds_of(each)]
    return next(iter(named or groups), None)


def choice_of(hint: Any) -> ChosenByKind | None:
    """The mark of a field that is chosen by kind."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, ChosenByKind)), None)


def kinds_of(group: Any) -> tuple[Any, ...]:
    """What may stand in the `kind` of a dataclass; empty where it has no such field."""
    return get_args(hints_of(group).get("kind"))


def join(path: str, key: str) -> str:
    """The dotted path of `key` below `path`; the root is the empty path."""
    return f"{path}.{key}" if path else key


def fits(value: Any, kind: Any) -> bool:
    """Whether the outermost shape of `value` is that of `kind`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return is_number and abs(value) < _BOUND and (isinstance(value, int) or value.is_integer())
    if kind is float:
        return is_number and abs(value) <= sys.float_info.max  # neither nan nor inf: a log in JSON has none
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if kind is Any:
        return True
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner)
    return isinstance(value, list if origin in (list, tuple) else kind)


def describe(hint: Any) -> str:
    """A type in plain words."""
    kinds = [kind for kind in alternatives(hint) if kind is not types.NoneType]
    words = [_describe_one(kind) for kind in kinds]
    if len(kinds) < len(alternatives(hint)):
        words.append("None")
    return " or ".join(words)


def _describe_one(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in inner)
    if origin is dict:
        return "a dict" if inner[1] is Any else f"a dict with each value {describe(inner[1])}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: " + ", ".join(describe(item) for item in inner)
    if origin in (list, tuple):
        return f"a list with each entry {describe(inner[0])}"
    if dataclasses.is_dataclass(kind):
        return "a dict with keys among " + ", ".join(hints_of(kind))
    return _SCALARS.get(kind, str(kind))


def shown(value: Any) -> str:
    """A given value for an error, cut to one line."""
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    if type(value) is int and abs(value) >= _BOUND:
        text += ", which has more than 64 bits"
    names: dict[type, str] = {dict: "the dict", list: "the list", str: "the text"}
    return f"{names[type(value)]} {text}" if type(value) in names else text


def near(value: Any, kinds: list[Any]) -> str:
    """`; did you mean ...` where a Literal has an option like `value`, or nothing."""
    options = [o for kind in kinds if get_origin(kind) is Literal for o in get_args(kind)]
    close = difflib.get_close_matches(str(value), [o for o in options if isinstance(o, str)], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown_key(key: Any, path: str, group: type, schema: type) -> ConfigError:
    """The error for a key that `group`, at `path`, does not have; searches all groups for similar keys."""
    wrong = join(path, str(key))
    everywhere = list(_all_keys(schema, ""))
    if wrong in everywhere and hasattr(group, "kind"):  # another kind's setting, of those that may stand here
        valid = ", ".join(hints_of(group))
        return ConfigError(f"unknown key `{wrong}`: the kind {group.kind} does not have it; valid keys here: {valid}")
    same = [dotted for dotted in everywhere if dotted.rpartition(".")[2] == key]
    here = [join(path, near) for near in difflib.get_close_matches(str(key), hints_of(group), n=2)]
    names = {dotted.rpartition(".")[2] for dotted in everywhere}
    elsewhere = difflib.get_close_matches(str(key), sorted(names), n=1, cutoff=0.75)
    other = [dotted for dotted in everywhere if dotted.rpartition(".")[2] in elsewhere]
    found = list(dict.fromkeys(same + here))[:3] or other[:2]
    if found:
        advice = "did you mean " + " or ".join(f"`{dotted}`" for dotted in found) + "?"
    else:
        advice = "valid keys here: " + ", ".join(hints_of(group))
    return ConfigError(f"unknown key `{wrong}`: {advice}")


def _all_keys(group: Any, path: str) -> Iterator[str]:
    """Every dotted path of a schema; in a list the index 0 stands for all."""
    for key, hint in hints_of(group).items():
        dotted = join(path, key)
        yield dotted
        if group_of(hint) is not None:
            yield from _all_keys(group_of(hint), dotted)
        elif group_of(element(hint, 0)) is not None:
            yield from _all_keys(group_of(element(hint, 0)), f"{dotted}.0")
