"""Temperature for a sampler without a likelihood (CALM, arXiv 2510.27688, section 4): samples of P(x)^(1/T) / Z.

All that is known of P is that one can draw from it, and see whether two values are equal.

    exact_choice   of the very distribution: values that n draws agree on, and a Bernoulli factory for what 1/T is
                   above n; takes as many draws as it takes
    batch_choice   of a fixed number of draws: close to it, and biased the less, the more draws there are
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import TypeVar

Value = TypeVar("Value", bound=Hashable)
_ROUNDING = 1e-9  # 1/T this near to a whole number is that number


class TooManyDraws(ValueError):
    """No value was accepted within the bound on draws."""


def exact_choice(draws: Iterator[Value], temperature: float, random: Random, most_draws: int) -> Value:
    """A sample of P^(1/T) from independent draws of P, for 0 < T ≤ 1.

    1/T = n + a with 0 ≤ a < 1. A value on which n draws agree has probability P^n; it is accepted with probability
    P^a. Raises TooManyDraws.
    """
    if not 0 < temperature <= 1:
        raise ValueError(f"temperature must lie above 0 and at most at 1, not {temperature}")
    whole = math.floor(1 / temperature + _ROUNDING)
    rest = max(0.0, 1 / temperature - whole)
    bounded = _bounded(draws, temperature, most_draws)
    while True:
        value = next(bounded)
        if all(next(bounded) == value for _ in range(whole - 1)) and (
            rest < _ROUNDING or _accepts(value, bounded, rest, random)
        ):
            return value


def _bounded(draws: Iterator[Value], temperature: float, most_draws: int) -> Iterator[Value]:
    for _ in range(most_draws):
        yield next(draws)
    raise TooManyDraws(
        f"{most_draws:,} draws at temperature {temperature:g} did not agree often enough to choose from; use a "
        "temperature nearer to 1, or the batch form"
    )


def _accepts(value: Value, draws: Iterator[Value], power: float, random: Random) -> bool:
    """True with probability P(value)^power, 0 < power < 1: a Bernoulli factory (Mendo 2019, arXiv 1612.08923).

    p^a = p Σ_k (1 − p)^k Π_{i ≤ k} (1 − a/i): the k-th draw that differs from the value ends it with probability a/k.
    """
    misses = 0
    while next(draws) != value:
        misses += 1
        if random.random() < power / misses:
            return False
    return True


def batch_choice(
    values: Sequence[Value],
    temperature: float,
    random: Random,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    allowed: Callable[[Value], bool] | None = None,
) -> Value:
    """About a sample of P^(1/T) from N draws of P, for 0 ≤ T ≤ 1; T = 0 takes the most frequent one.

    A value that occurs c times weighs C(c, r), r = 1/T, whose mean is C(N, r) P^r for a whole number r; where none
    occurs often enough, r is lowered by 1. top_k, top_p: only the values of most weight, as many of them or as reach
    this share. allowed: what may be chosen; where nothing may, everything may.
    """
    if not 0 <= temperature <= 1:
        raise ValueError(f"temperature must lie between 0 and 1, not {temperature}")
    counts = Counter(values)
    if allowed is not None:
        counts = Counter({value: count for value, count in counts.items() if allowed(value)}) or counts
    if temperature == 0:
        return counts.most_common(1)[0][0]
    power = 1 / temperature
    power -= max(0, math.floor(power - 1 - max(counts.values()) + _ROUNDING) + 1)
    # Values that occur equally often keep the order in which they were drawn, which is random.
    logs = [(value, log) for value, count in counts.most_common() if (log := _log_binomial(count, power)) is not None]
    kept = logs[: top_k or None]
    weights = [math.exp(log - kept[0][1]) for _, log in kept]
    sums = list(accumulate(weights))
    upto = bisect_left(sums, top_p * sums[-1]) + 1
    return random.choices([value for value, _ in kept[:upto]], weights[:upto])[0]


def _log_binomial(count: int, power: float) -> float | None:
    """log of C(count, power) · Γ(power + 1), for a real power; None where it is not above 0."""
    if count <= power - 1 + _ROUNDING:
        return None
    return math.lgamma(count + 1) - math.lgamma(count - power + 1)
