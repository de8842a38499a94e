"""What the harness's generation arguments mean here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from abstractinator.contract.generation_config import GenerationConfig

DEFAULT_NEW_BYTES = 256
_OURS = ("mode", "max_new_bytes", "temperature", "stop")
_PASSED_ON = tuple(field.name for field in fields(GenerationConfig) if field.name not in _OURS)


def generation_request(arguments: dict[str, Any]) -> GenerationConfig:
    """Arguments of the harness (until, max_gen_toks and its other names, do_sample, …) → GenerationConfig;
    max_gen_toks counts bytes.

    Greedy unless sampling is asked for; then from the model's whole distribution unless top_k or top_p narrow it,
    with a seed from torch's global random state, which the harness sets. Raises ValueError for an argument that
    is not known and for a stop string that is no whole characters.
    """
    known = dict(normalize_gen_kwargs(arguments, DEFAULT_NEW_BYTES))
    until, sample, bound = known.pop("until"), known.pop("do_sample"), known.pop("max_gen_toks")
    temperature = known.pop("temperature", None)
    if unknown := [name for name in known if name not in _PASSED_ON]:
        names = ", ".join(("until", "max_gen_toks", "do_sample", "temperature", *_PASSED_ON))
        raise ValueError(f"there is no generation argument `{unknown[0]}`; known are {names}")
    if not isinstance(bound, int) or bound < 1:
        raise ValueError(f"max_gen_toks, which counts bytes, must be a whole number of at least 1, not {bound!r}")
    settings: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "seed": int(torch.randint(2**31, ()))} | known
    return GenerationConfig(
        max_new_bytes=bound,
        temperature=float(1.0 if temperature is None else temperature) if sample else 0.0,
        stop=tuple(stop_bytes(stop) for stop in until if stop),
        **settings,
    )


def stop_bytes(stop: str) -> bytes:
    """The UTF-8 of a stop string, which in text can be found at the borders of characters only.

    Raises ValueError for one with a lone surrogate: its bytes could be found within a character.
    """
    try:
        return stop.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the stop string {stop!r} holds a part of a character (a lone surrogate); it must be whole characters"
        ) from error
