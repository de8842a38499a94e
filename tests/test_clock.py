"""The clock of a training: its planned steps, its phases, and a time limit that is kept at any speed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractinator.contract.model import Phase
from abstractinator.training.clock import Clock

ONE = (Phase("all"),)
TWO = (Phase("cheap", 0.5, 1.0), Phase("dear", 1.0, 3.0))


def run(clock: Clock, seconds_of: dict[str, float], phases: tuple[Phase, ...] = ONE, slower_after: float = 1e9) -> None:
    """Steps until the end; from `slower_after` seconds on each takes four times as long."""
    while not clock.is_over:
        factor = 4 if clock.seconds >= slower_after else 1
        clock.tick(factor * seconds_of[clock.phase(phases).name], phases)


def test_without_a_limit_each_step_is_a_planned_one() -> None:
    clock = Clock(10)
    for step in range(10):
        assert clock.position == step and isinstance(clock.position, int)
        assert clock.done == step / 10
        clock.tick(100.0, ONE)
    assert clock.is_over and clock.step == 10 and clock.pace == []


def test_a_phase_begins_with_the_first_step_at_its_share() -> None:
    clock = Clock(10)
    names = []
    for _ in range(10):
        names.append(clock.phase(TWO).name)
        clock.tick(1.0, TWO)
    assert names == ["cheap"] * 5 + ["dear"] * 5


def test_a_limit_that_is_long_enough_changes_nothing() -> None:
    clock = Clock(100, limit=250.0)
    run(clock, {"all": 1.0})
    assert clock.step == 100 and clock.pace == [] and isinstance(clock.position, int)


@given(st.floats(0.05, 20.0), st.floats(1.5, 6.0), st.floats(0.0, 1.2), st.integers(500, 2000))
def test_a_limit_is_kept_whatever_steps_take_and_whenever_they_slow_down(
    cheap: float, ratio: float, slower: float, planned: int
) -> None:
    dear = ratio * cheap
    limit = 0.4 * planned * dear
    clock = Clock(planned, limit=limit)
    run(clock, {"cheap": cheap, "dear": dear}, TWO, slower_after=slower * limit)
    longest = 4 * max(cheap, dear)
    assert clock.seconds <= 1.05 * limit + 4 * longest
    assert clock.step == planned or clock.seconds >= 0.9 * limit - 4 * longest


def test_all_phases_have_their_share_of_the_steps_where_the_costs_are_right() -> None:
    clock = Clock(1000, limit=500.0)
    run(clock, {"cheap": 1.0, "dear": 3.0}, TWO)
    first = [step for step, _ in clock.pace]
    assert clock.pace[0][1] == pytest.approx(4.0, rel=0.05) and first == sorted(first)
    assert clock.step == pytest.approx(250, rel=0.05)


def test_the_pace_repeats_a_run_exactly() -> None:
    limited = Clock(1000, limit=300.0)
    positions: list[float] = []
    seconds = iter(range(10_000))
    while not limited.is_over:
        positions.append(limited.position)
        limited.tick(0.5 + next(seconds) % 7 / 3, ONE)
    again = Clock(1000, pace=[(step, stride) for step, stride in limited.pace])
    repeated: list[float] = []
    while not again.is_over:
        repeated.append(again.position)
        again.tick(0.01, ONE)
    assert repeated == positions and len(limited.pace) > 3


def test_a_saved_clock_continues_where_it_was() -> None:
    whole, first = Clock(500, limit=100.0), Clock(500, limit=100.0)
    for _ in range(60):
        whole.tick(1.0, ONE)
        first.tick(1.0, ONE)
    second = Clock(500, limit=100.0)
    second.load_state_dict(first.state_dict())
    assert (second.step, second.position, second.seconds, second.stride) == (
        whole.step,
        whole.position,
        whole.seconds,
        whole.stride,
    )
    run(second, {"all": 1.0})
    assert second.seconds == pytest.approx(100.0, abs=3.0)


@pytest.mark.parametrize("limit", [None, 300.0])
def test_another_limit_replaces_the_plan_of_the_one_before(limit: float | None) -> None:
    first, second = Clock(1000, limit=100.0), Clock(1000, limit=limit)
    for _ in range(60):
        first.tick(1.0, ONE)
    assert first.stride > 5
    second.load_state_dict(first.state_dict())
    assert second.stride == 1 and second.pace[:-1] == [entry for entry in first.pace if entry[0] < 60]
    run(second, {"all": 1.0})
    if limit is None:
        assert second.step == pytest.approx(60 + 1000 - first.position, abs=1)
    else:
        assert second.seconds == pytest.approx(limit, rel=0.05)


def test_a_limit_that_was_used_up_leaves_no_stride_behind() -> None:
    first, second = Clock(1000, limit=10.0), Clock(1000)
    for _ in range(5):
        first.tick(1.0, ONE)
    first.tick(10.0, ONE)
    assert first.stride > 100 and not first.is_over
    second.load_state_dict(first.state_dict())
    assert second.steps_left == 1000 - first.position
