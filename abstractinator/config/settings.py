"""Strict configuration: a literal dict in a Python file, checked into typed nested dataclasses.

The way of a setting: `load_config_file` reads the dict `exp_config` without executing anything,
`apply_overrides` puts `key.sub=value` from the command line over it, `build` checks all of it into the
dataclasses of a schema, `to_dict` turns those back into plain values for a checkpoint or a log.

What merges and what replaces: a dict given for a dataclass merges over that field's default, key by key.
A list, a tuple and a free `dict[str, X]` replace the default as a whole. Since defaults are merged by value,
a schema derives values with properties and never by assigning fields in `__post_init__`.

A schema's field types may be: bool, int, float, str, None, Any, Literal, dataclasses, and list[X],
tuple[X, ...], tuple[X, Y], dict[str, X], X | Y of these.
"""

from __future__ import annotations

import ast
import dataclasses
import types
from typing import Any, TypeVar, get_args, get_origin

from abstractinator.config.settings_file import CONFIG_NAME, load_config_file
from abstractinator.config.settings_types import (
    ChosenByKind,
    ConfigError,
    alternatives,
    choice_of,
    describe,
    element,
    fits,
    group_of,
    hints_of,
    join,
    near,
    shown,
    unknown_key,
)

__all__ = ["CONFIG_NAME", "ChosenByKind", "ConfigError", "apply_overrides", "build", "load_config_file", "to_dict"]

T = TypeVar("T")


def apply_overrides(raw: dict[str, Any], overrides: list[str], schema: type) -> dict[str, Any]:
    """A copy of `raw`, filled up with the schema's defaults, with each `key.sub=value` put over it in order; a `kind`
    comes before the other settings of its group.

    Numbers in a path are list indices: `parts.0.kind=name`. A value is read as a Python literal,
    `none`, `true` and `false` in any case, and anything else is text; where the schema wants text, what is
    written is taken as it is. Raises ConfigError for a path that the schema does not have.
    """
    result: dict[str, Any] = _fill(schema, {}, raw)
    pairs = []
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted.strip():
            raise ConfigError(f"'{override}' is not an override; write key=value or key.sub=value")
        pairs.append((dotted.strip().split("."), text.strip()))
    for path, text in _kinds_first(pairs):
        _set(result, schema, path, text, schema)
    return result


def _kinds_first(pairs: list[tuple[list[str], str]]) -> list[tuple[list[str], str]]:
    """The overrides in order, but each `kind`, which decides what keys its group has, before settings of that group. It
    stays behind what replaces it: the group as a whole, a group above it, or the same `kind`."""
    result: list[tuple[list[str], str]] = []
    for path, text in pairs:
        position = len(result)
        if path[-1] == "kind":
            group = path[:-1]
            while position and path[: len(result[position - 1][0])] != result[position - 1][0]:
                position -= 1
            while position < len(result) and result[position][0][: len(group)] != group:
                position += 1
        result.insert(position, (path, text))
    return result


def _set(root: dict[str, Any], schema: type, path: list[str], text: str, hint: Any) -> None:
    container: Any = root
    for depth, key in enumerate(path):
        group = group_of(hint, container)
        outer, (slot, hint) = hint, _step(container, hint, key, ".".join(path[:depth]), schema)
        if depth == len(path) - 1:
            value = _parse_value(text, hint)
            if slot == "kind" and value != container["kind"]:
                _change_kind(container, outer, group, value, ".".join(path[:depth]))
            default = None if group is None else _defaults(group).get(key)
            container[slot] = _fill(hint, default, value)
            return
        below = container.get(slot) if isinstance(container, dict) else container[slot]
        if below is None and group_of(hint) is not None:  # an optional group that is off is switched on
            below = container[slot] = _fill(group_of(hint), {}, {})
        elif below is None and any(get_origin(kind) is dict for kind in alternatives(hint)):
            below = container[slot] = {}
        container = below


def _change_kind(container: dict[str, Any], hint: Any, old: Any, kind: Any, path: str) -> None:
    """Another kind for a group: settings that differ from the old kind's defaults are kept, the others are the new
    kind's. Raises ConfigError where the new kind lacks one that is kept."""
    defaults = _defaults(old)
    kept = {key: value for key, value in container.items() if key != "kind" and value != _filled(old, key, defaults)}
    new = group_of(hint, {"kind": kind})
    if strange := [key for key in kept if key not in hints_of(new)]:
        raise ConfigError(
            f"`{join(path, strange[0])}` is a setting of kind {container['kind']}, and {join(path, 'kind')} is {kind}"
        )
    container.clear()
    container.update(_fill(new, {}, kept | {"kind": kind}))


def _filled(group: Any, key: str, defaults: dict[str, Any]) -> Any:
    return _fill(hints_of(group)[key], defaults.get(key), defaults.get(key))


def _step(container: Any, hint: Any, key: str, here: str, schema: type) -> tuple[str | int, Any]:
    """One step of a dotted path: the key or index into `container`, and the type that stands there."""
    if isinstance(container, list):
        if not key.isdecimal() or int(key) >= len(container):
            count = f"{len(container)} {'entry' if len(container) == 1 else 'entries'}"
            raise ConfigError(f"{join(here, key)}: `{here}` has {count}; use an index from 0")
        return int(key), element(hint, int(key))
    if not isinstance(container, dict):
        raise ConfigError(f"{join(here, key)}: `{here}` is {shown(container)}, which has no keys")
    group = group_of(hint, container)
    if group is None:  # a free dict: any key will do
        return key, next((get_args(kind)[1] for kind in alternatives(hint) if get_origin(kind) is dict), Any)
    if key not in hints_of(group):
        raise unknown_key(key, here, group, schema)
    return key, hints_of(group)[key]


def _parse_value(text: str, hint: Any) -> Any:
    """The value meant by what stands right of `=`; the wanted type decides only whether it stays text."""
    kinds = alternatives(hint)
    words = {"none": None, "true": True, "false": False}
    if text.lower() == "none" and kinds != [str]:
        return None
    if text.lower() in words and str not in kinds:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    only_text = set(kinds) <= {str, types.NoneType}  # run_name=2024 means the text
    readable = isinstance(value, str) or (not only_text and isinstance(value, int | float | list | tuple | dict))
    return _plain(value) if readable else text


def build(schema: type[T], raw: dict[str, Any]) -> T:
    """The checked dataclass of `raw` (plain values) over the schema's defaults.

    Raises ConfigError with the full dotted path for an unknown key (naming the nearest valid one), a missing
    or an ill-typed value, and whatever ValueError a dataclass's own `__post_init__` raises. An int is
    accepted where a float is wanted and 1e3 where an int is; a bool is never a number.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"the configuration must be a dict, not {shown(raw)}")
    result: T = _build_group(schema, _fill(schema, {}, raw), "", schema)
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """The plain, JSON-able dict of a config dataclass; `build(type(config), to_dict(config)) == config`."""
    result: dict[str, Any] = _plain(config)
    return result


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _fill(hint: Any, default: Any, raw: Any) -> Any:
    """`raw` with the defaults of every dataclass in it filled in; what does not fit the type stays as it is.

    `default` is the plain value of the field's default, which a dict given for a dataclass merges over.
    """
    if not isinstance(default, dict):
        default = {}
    group = group_of(hint, {"kind": default.get("kind"), **raw}) if isinstance(raw, dict) else None
    if group is not None:
        if group is not group_of(hint, default):
            default = {}  # of another kind
        defaults = {**_defaults(group), **default}
        kinds = hints_of(group)
        values = {**defaults, **raw}
        return {key: _fill(kinds.get(key, Any), defaults.get(key), value) for key, value in values.items()}
    if isinstance(raw, list | tuple):
        return [_fill(element(hint, index), None, item) for index, item in enumerate(raw)]
    return _plain(raw)


def _defaults(group: type) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        if field.default is not dataclasses.MISSING:
            result[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            result[field.name] = _plain(field.default_factory())
    return result


def _build_group(group: Any, raw: dict[str, Any], path: str, schema: type) -> Any:
    hints = hints_of(group)
    for key in raw:
        if key not in hints:
            raise unknown_key(key, path, group, schema)
    for key, hint in hints.items():
        if key not in raw:
            raise ConfigError(f"{join(path, key)} is required: give {describe(hint)}")
    values = {key: _convert(raw[key], hint, join(path, key), schema) for key, hint in hints.items()}
    try:
        return group(**values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _convert(value: Any, hint: Any, path: str, schema: type) -> Any:
    """`value` as the type `hint`, or a ConfigError at `path`."""
    if choice_of(hint) is not None:
        hint = group_of(hint, value)
    kinds = alternatives(hint)
    if Any in kinds:
        return value
    fitting = [kind for kind in kinds if fits(value, kind)]
    if not fitting:
        raise ConfigError(f"{path} must be {describe(hint)}, not {shown(value)}{near(value, kinds)}")
    exact = [kind for kind in fitting if type(value) is kind]  # 3 stays an int where int | float is wanted
    kind = (exact or fitting)[0]
    if dataclasses.is_dataclass(kind):
        kind = group_of(hint, value)
        return _build_group(kind, _fill(kind, {}, value), path, schema)
    origin = get_origin(kind)
    if origin is dict:
        inner = get_args(kind)[1]
        return {key: _convert(item, inner, join(path, key), schema) for key, item in value.items()}
    if origin in (list, tuple):
        parts = enumerate(value)
        return origin(_convert(item, element(kind, i), join(path, str(i)), schema) for i, item in parts)
    return kind(value) if kind in (int, float) else value
