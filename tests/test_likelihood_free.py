"""Temperature from draws alone: the distributions are the ones that are promised, by χ² at 1 %."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest

from abstractinator.components.calm.temperature import TooManyDraws, batch_choice, exact_choice

SHARES = {"a": 0.4, "b": 0.3, "c": 0.15, "d": 0.1, "e": 0.05}
CRITICAL = 13.277  # of χ² with 4 degrees of freedom, at 1 %
TEMPERATURES = [1.0, 1 / 2, 1 / 3, 0.7, 0.4]
CHOICES, DRAWS = 5_000, 200

every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def draws(random: Random) -> Iterator[str]:
    while True:
        yield from random.choices(list(SHARES), list(SHARES.values()), k=1_000)


def chi_squared(choose: Callable[[Random, Iterator[str]], str], temperature: float, seed: int = 0) -> float:
    """Of CHOICES choices against P^(1/T) / Z."""
    random = Random(seed)
    source = draws(random)
    found = Counter(choose(random, source) for _ in range(CHOICES))
    powers = {value: share ** (1 / temperature) for value, share in SHARES.items()}
    expected = {value: CHOICES * power / sum(powers.values()) for value, power in powers.items()}
    return sum((found[value] - count) ** 2 / count for value, count in expected.items())


def exactly(temperature: float) -> Callable[[Random, Iterator[str]], str]:
    return lambda random, source: exact_choice(source, temperature, random, 10_000)


def by_batch(temperature: float) -> Callable[[Random, Iterator[str]], str]:
    return lambda random, source: batch_choice([next(source) for _ in range(DRAWS)], temperature, random)


@every_temperature
def test_the_exact_form_has_the_distribution(temperature: float) -> None:
    assert chi_squared(exactly(temperature), temperature) < CRITICAL


@every_temperature
def test_the_batch_form_has_nearly_the_distribution(temperature: float) -> None:
    assert chi_squared(by_batch(temperature), temperature) < CRITICAL


@every_temperature
def test_a_sampler_at_another_temperature_is_rejected(temperature: float) -> None:
    other = {1.0: 0.9, 0.5: 0.55, 1 / 3: 0.37, 0.7: 0.8, 0.4: 0.45}[temperature]
    assert chi_squared(exactly(other), temperature) > CRITICAL
    assert chi_squared(by_batch(other), temperature) > CRITICAL


def test_agreement_without_the_bernoulli_factory_is_rejected() -> None:
    assert chi_squared(exactly(1 / 2), 0.4) > CRITICAL
    assert chi_squared(exactly(1.0), 0.7) > CRITICAL


def test_draws_are_bounded() -> None:
    with pytest.raises(TooManyDraws, match=r"50 draws at temperature 0\.5 did not agree"):
        exact_choice(iter(range(10**6)), 0.5, Random(0), 50)
    with pytest.raises(TooManyDraws):
        exact_choice(iter(range(10**6)), 0.999, Random(0), 3)
    assert exact_choice(iter("x"), 1.0, Random(0), 1) == "x"


@pytest.mark.parametrize("temperature", [-0.1, 1.01, 2.0])
def test_other_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must lie"):
        batch_choice(["a"], temperature, Random(0))
    with pytest.raises(ValueError, match="temperature must lie"):
        exact_choice(iter("a"), temperature, Random(0), 9)
    with pytest.raises(ValueError, match="temperature must lie above 0"):
        exact_choice(iter("a"), 0.0, Random(0), 9)


def test_temperature_0_takes_the_most_frequent() -> None:
    assert {batch_choice(list("abcbcb"), 0.0, Random(seed)) for seed in range(20)} == {"b"}


@pytest.mark.parametrize("temperature", [1 / 3, 0.3, 0.01, 1e-9])
def test_where_nothing_occurs_often_enough_the_power_is_lowered(temperature: float) -> None:
    """To that of the values that occur most often: twice, here."""
    found = Counter(batch_choice(list("abcbcd"), temperature, Random(seed)) for seed in range(200))
    assert set(found) == {"b", "c"} and min(found.values()) > 50


def test_cuts_and_bans() -> None:
    values = list("aaaabbbccd")

    def found(**options: object) -> set[str]:
        return {batch_choice(values, 1.0, Random(seed), **options) for seed in range(300)}  # type: ignore[arg-type]

    assert found() == set("abcd")
    assert found(top_k=2) == found(top_p=0.7) == found(top_p=0.5) == set("ab")
    assert found(top_p=0.71) == set("abc")
    assert found(top_p=0.01) == found(top_k=1) == set("a")
    assert found(allowed=lambda value: value in "cd") == set("cd")
    assert found(allowed=lambda value: value in "cd", top_k=1) == set("c")
    assert found(allowed=lambda value: False) == set("abcd")
