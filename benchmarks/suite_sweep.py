"""What a sweep turns, which factor it tries next, and what another run's sweep has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abstractinator.data import DataError
from benchmarks.pieces import Result

HYPERPARAMETERS = ("batch", "rate", "adamw_rate")  # factors on rows a step and rates that a model has by default
_FACTORS = (1.0, 0.5, 2.0)  # by which they are turned, and on beyond the last while that is the best
MOST = len(_FACTORS) + 3  # factors of a tuned that are tried

Swept = dict[str, tuple[dict[str, float], list[Result]]]  # by model its factors and its trainings


def unit_of(tuned: str) -> str:
    """What the trainings have in common by which the factors of a hyperparameter are compared.

    Time for rows a step; bytes for the rates, as a rate makes no step slower and the speed of the machine, another at
    every hour, must not decide between them.
    """
    return "seconds" if tuned == "batch" else "bytes"


def next_factor(tried: dict[float, float | None], least: float = 0.0) -> float | None:
    """The next factor to try after these, with what each came to; None when enough were tried. It is not below
    `least`."""
    for factor in _FACTORS:
        if factor not in tried and factor >= least:
            return factor
    good = {factor: exact for factor, exact in tried.items() if exact is not None}
    best = min(good, key=good.__getitem__) if good else min(tried)
    if len(tried) >= MOST or min(tried) < best < max(tried):
        return None
    following = best / 2 if best == min(tried) else best * 2
    return following if following >= least else None


def swept_before(path: Path, base: dict[str, Any]) -> Swept:
    """What the sweep of another run found: by model its factors and trainings. Raises DataError where there is no
    sweep in that file, or one of other sizes or on another device; the text may be another."""
    try:
        found = json.loads(path.read_text())
        settings = found["settings"] | {"parameters": found["parameters"]}
        with_sweep = [one for one in found["baselines"] if one.get("sweep")]
        swept = {
            one["name"]: (_factors_of(one["factors"]), [each | _factors_of(each) for each in one["sweep"]])
            for one in with_sweep
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no result of this version of the suite ({type(error).__name__}: {error})"
        raise DataError(f"--sweep-from={path} is {why}; give its suite.json") from None
    if not swept:
        raise DataError(f"--sweep-from={path} has no sweep; give the suite.json of a run that made one")
    ours = ["autoencoder_fraction"] if "abstractinator" in swept else []
    for name in ("parameters", "sequence_length", "batch_size", "device", *ours):
        if settings.get(name) != base[name]:
            raise DataError(f"--sweep-from={path} has {name} {settings.get(name)}, this run {base[name]}")
    return swept


def _factors_of(found: dict[str, Any]) -> dict[str, float]:
    factors = {tuned: float(found[tuned]) for tuned in HYPERPARAMETERS}
    if not all(factor > 0 for factor in factors.values()):
        raise ValueError(f"factors must be positive: {factors}")
    return factors
