"""Reads the dict `exp_config` from a Python file without executing the file."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abstractinator.config.settings_types import ConfigError

CONFIG_NAME = "exp_config"
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def load_config_file(path: str | Path) -> dict[str, Any]:
    """The dict that a Python file assigns to `exp_config`; the file is parsed and never executed.

    Apart from that one assignment, the file may hold comments and a docstring. Values are literals, and
    arithmetic on numbers such as `4 * 1024` is folded; tuples become lists. Anything else is a ConfigError
    with its line.
    """
    try:
        return _only_assignment(_parse(path), str(path))
    except (RecursionError, MemoryError):  # Python's parser raises MemoryError for too many brackets or signs
        raise ConfigError(f"{path}: its expressions are nested too deeply; write the values out") from None


def _parse(path: str | Path) -> list[ast.stmt]:
    try:
        source = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin files with a byte-order mark
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, at byte {error.start:,}; is it a config file?") from error
    if (nul := source.find("\0")) >= 0:
        line = source.count("\n", 0, nul) + 1
        raise ConfigError(f"{path}, line {line}: a NUL byte stands there; is it a config file?")
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not valid Python: {error.msg}") from error


def _only_assignment(body: list[ast.stmt], path: str) -> dict[str, Any]:
    found: ast.expr | None = None
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == CONFIG_NAME and not found:
                found = value
            case _:
                only = f"only one assignment `{CONFIG_NAME} = {{...}}` may stand in a config file"
                raise ConfigError(f"{path}, line {statement.lineno}: {only}; it is read, not executed")
    if not isinstance(found, ast.Dict):
        raise ConfigError(f"{path}: no assignment `{CONFIG_NAME} = {{...}}` of a dict")
    result: dict[str, Any] = _literal(found, path)
    return result


def _literal(node: ast.expr, source: str) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, source) for item in items]
        case ast.Dict():
            return _literal_dict(node, source)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            value = _number(operand, source)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            a, b = _number(left, source), _number(right, source)
            if isinstance(op, ast.Pow) and (abs(a) > 1e6 or abs(b) > 64):
                raise ConfigError(f"{source}, line {node.lineno}: this power is too large")
            try:
                return _ARITHMETIC[type(op)](a, b)
            except ArithmeticError as error:
                raise ConfigError(f"{source}, line {node.lineno}: {error}") from error
    allowed = "text in quotes, numbers, True, False, None, lists and dicts"
    raise ConfigError(f"{source}, line {node.lineno}: `{ast.unparse(node)}` is not a literal; use {allowed}")


def _number(node: ast.expr, source: str) -> Any:
    value = _literal(node, source)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{source}, line {node.lineno}: arithmetic needs numbers, not {value!r}")
    return value


def _literal_dict(node: ast.Dict, source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        where = f"{source}, line {(key_node or value_node).lineno}"
        if not (isinstance(key_node, ast.Constant) and isinstance(key_node.value, str)):
            raise ConfigError(f"{where}: a key must be text in quotes")
        if key_node.value in result:  # Python would silently keep the later one
            raise ConfigError(f"{where}: the key '{key_node.value}' stands twice")
        result[key_node.value] = _literal(value_node, source)
    return result
