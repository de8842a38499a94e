"""`--model_args` and `--gen_kwargs`: key=value pairs, with commas between them, as the harness has it, or spaces."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any

from lm_eval.utils import simple_parse_args_string


def parse_model_args(words: str | list[str] | None, option: str = "--model_args") -> dict[str, Any]:
    """`a=1,b=x`, `a=1 b=x` or a list of such words → values typed as the harness types them.

    A space that no key follows belongs to the value. option: what the words were given for. Raises ValueError for a
    word without `=` and for a key that comes twice.
    """
    text = " ".join(words or []) if not isinstance(words, str) else words
    text = re.sub(r"\s+(?=\w+=)", ",", text.strip())
    keys: set[str] = set()
    for pair in filter(None, text.split(",")):
        key, equals, _ = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} takes key=value pairs, not {pair!r} (in {text!r})")
        if key in keys:
            raise ValueError(f"{option} has `{key}` twice (in {text!r})")
        keys.add(key)
    return simple_parse_args_string(text)


def refuse_unknown(unknown: dict[str, Any], cls: type, name: str) -> None:
    """Raises ValueError where there are arguments that the constructor of `cls` does not name."""
    if not unknown:
        return
    parameters = inspect.signature(cls).parameters.values()
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    wrong = next(iter(unknown))
    near = difflib.get_close_matches(wrong, known, 1)
    advice = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(known)}"
    raise ValueError(f"{name} has no argument `{wrong}`; {advice}")
