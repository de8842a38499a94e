"""Temperature without a likelihood: samples of P^(1/T) from nothing but draws of P, held against the exact distribution
by a χ² test."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractinator.components.calm.temperature import TooManyDraws, batch_choice, exact_choice

SHARES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
SAMPLES = 6_000
# χ² of 3 degrees of freedom is above this once in a hundred times.
CRITICAL = 11.345


def draws(random: Random) -> Iterator[str]:
    while True:
        yield from random.choices(list(SHARES), list(SHARES.values()), k=256)


def sharpened(temperature: float) -> dict[str, float]:
    weights = {value: share ** (1 / temperature) for value, share in SHARES.items()}
    return {value: weight / sum(weights.values()) for value, weight in weights.items()}


def chi_squared(found: list[str], expected: dict[str, float]) -> float:
    counts = Counter(found)
    return sum((counts[value] - len(found) * p) ** 2 / (len(found) * p) for value, p in expected.items())


@pytest.mark.parametrize("temperature", [1.0, 1 / 2, 1 / 3, 0.7, 0.4])
def test_exact_samples_have_the_exact_distribution(temperature: float) -> None:
    random = Random(3)
    source = draws(random)
    found = [exact_choice(source, temperature, random, 10**6) for _ in range(SAMPLES)]
    assert chi_squared(found, sharpened(temperature)) < CRITICAL
    # The same test tells temperatures apart.
    for other in (1.0, 0.7, 0.4):
        if abs(other - temperature) > 0.2:
            assert chi_squared(found, sharpened(other)) > 5 * CRITICAL


@pytest.mark.parametrize("temperature", [1.0, 1 / 2, 1 / 3])
def test_the_batch_form_comes_close(temperature: float) -> None:
    random = Random(5)
    source = draws(random)
    found = [batch_choice(list(itertools.islice(source, 200)), temperature, random) for _ in range(SAMPLES)]
    counts, expected = Counter(found), sharpened(temperature)
    distance = sum(abs(counts[value] / SAMPLES - p) for value, p in expected.items()) / 2
    assert distance < 0.02
    assert sum(abs(SHARES[value] - p) for value, p in expected.items()) / 2 > 0.1 or temperature == 1.0


def test_one_draw_is_the_distribution_itself() -> None:
    random = Random(1)
    source = draws(random)
    found = [batch_choice([next(source)], 0.5, random) for _ in range(SAMPLES)]  # n is lowered until one is enough
    assert chi_squared(found, SHARES) < CRITICAL


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_the_limits_of_the_batch_form(values: list[str]) -> None:
    counts, random = Counter(values), Random(0)
    most = max(counts.values())
    assert counts[batch_choice(values, 0.0, random)] == most
    assert counts[batch_choice(values, 0.7, random, top_k=1)] == most
    assert counts[batch_choice(values, 1.0, random, top_p=1e-9)] == most
    assert batch_choice(values, 1.0, random, allowed=lambda value: value == values[0]) == values[0]
    assert batch_choice(values, 1.0, random, allowed=lambda _: False) in counts


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5, math.nan])
def test_a_temperature_that_cannot_be_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must lie"):
        exact_choice(draws(Random(0)), temperature, Random(0), 10)
    if temperature != 0:
        with pytest.raises(ValueError, match="temperature must lie"):
            batch_choice(["a"], temperature, Random(0))


def test_draws_that_never_agree_come_to_an_end() -> None:
    with pytest.raises(TooManyDraws, match="1,000 draws"):
        exact_choice(iter(range(10**6)), 0.5, Random(0), 1_000)
