"""The control loop, on a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ddpm_deploy.bench.deadline import SLICES, WARMUP_CALLS, keep_pace
from ddpm_deploy.bench.measure import Contender


class Clock:
    """Time that passes only while something is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float) -> Callable[[], None]:
        return lambda: self.sleep(seconds)


def paced(clock: Clock, contenders: list[Contender], period_s: float, ticks: int):
    return keep_pace(contenders, period_s, ticks, clock=clock, sleep=clock.sleep)


def test_call_within_the_period_is_never_missed() -> None:
    clock = Clock()
    (result,) = paced(clock, [Contender("quick", clock.work(0.010))], 0.040, 50).values()
    assert result.response_s == pytest.approx([0.010] * 50)
    assert result.missed == 0


def test_every_call_over_the_period_is_missed_and_its_ticks_counted() -> None:
    clock = Clock()
    (result,) = paced(clock, [Contender("slow", clock.work(0.100))], 0.040, 50).values()
    assert len(result.response_s) == 50
    assert max(result.response_s) >= 0.100
    assert result.missed > 25


def test_response_counts_from_the_tick_not_from_the_start_of_the_call() -> None:
    """One call of 68 ms in a period of 40: the next tick is late by 28 before it even starts."""
    clock = Clock()
    durations = iter([0.010] * (WARMUP_CALLS + 1) + [0.010, 0.068] + [0.010] * 100)
    (result,) = paced(clock, [Contender("uneven", lambda: clock.sleep(next(durations)))], 0.040, 5 * SLICES).values()
    first_turn = result.response_s[:5]
    assert first_turn[:2] == pytest.approx([0.010, 0.068])
    assert first_turn[2] == pytest.approx(0.038)
    assert first_turn[3:] == pytest.approx([0.010, 0.010])
    assert result.missed == 1


def test_contenders_take_turns_and_get_as_many_ticks_each() -> None:
    clock, order = Clock(), []
    contenders = [
        Contender(name, lambda name=name: (order.append(name), clock.sleep(0.001))) for name in ("one", "two")
    ]
    results = paced(clock, contenders, 0.010, 13)
    assert {name: len(result.response_s) for name, result in results.items()} == {"one": 13, "two": 13}
    turns = [name for k, name in enumerate(order) if k == 0 or order[k - 1] != name]
    assert len(turns) > SLICES


def test_no_ticks_give_no_responses() -> None:
    clock = Clock()
    (result,) = paced(clock, [Contender("idle", clock.work(0.001))], 0.010, 0).values()
    assert (result.response_s, result.missed) == ([], 0)
