"""The measuring protocol, on a clock that is moved by the contenders themselves."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from ddpm_deploy.bench import measure
from ddpm_deploy.bench.measure import (
    SHORT_S,
    WARMUP_ROUNDS,
    WINDOW,
    Contender,
    Effort,
    interleave,
    interleave_anew,
    levelled_out,
    opening_order,
    round_seconds,
)
from ddpm_deploy.bench.statistics import paired_ratio

LONG_S = 2 * SHORT_S


class Machine:
    """A clock, a list of who ran, and a speed that may drift with time."""

    def __init__(self, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self.slowness = slowness

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, seconds: Callable[[], float]) -> Contender:
        def call() -> None:
            self.ran.append(name)
            self.now += seconds() * self.slowness(self.now)

        return Contender(name, call)

    def steady(self, name: str, seconds: float) -> Contender:
        return self.contender(name, lambda: seconds)


def test_every_contender_runs_once_in_each_round_in_an_order_drawn_anew() -> None:
    machine = Machine()
    contenders = [machine.steady(name, LONG_S) for name in "abcd"]
    result = interleave(contenders, Effort(1000, min_rounds=40, max_rounds=40), clock=machine)
    measured = machine.ran[-160:]
    rounds = [tuple(measured[k : k + 4]) for k in range(0, 160, 4)]
    assert {len(set(one)) for one in rounds} == {4}
    assert len(set(rounds)) > 10
    assert {one[0] for one in rounds} == set("abcd")
    assert {len(seconds) for seconds in result.seconds.values()} == {40}


def test_contenders_are_opened_anew_for_each_part_of_the_rounds() -> None:
    machine, openings = Machine(), []

    def opened(k: int) -> list[Contender]:
        openings.append(k)
        return [machine.steady("ab"[i], LONG_S * (1 + k)) for i in opening_order(2, k)]

    result = interleave_anew(opened, Effort(0, min_rounds=9, max_rounds=9), openings=4, clock=machine)
    assert openings == [0, 1, 2, 3]
    assert result.openings == (3, 3, 3, 3)
    assert result.seconds["a"] == pytest.approx(np.repeat([1, 2, 3, 4], 3) * LONG_S)
    assert result.stable == {"a", "b"}


def test_contender_that_never_warms_up_in_one_opening_is_not_stable() -> None:
    machine = Machine()

    def opened(k: int) -> list[Contender]:
        falling = (1000 * 0.9**i for i in range(1000))
        return [machine.steady("a", 1.0), machine.contender("b", lambda: next(falling) if k == 2 else 1.0)]

    result = interleave_anew(opened, Effort(1.0, 6, 6, 12), openings=3, clock=machine)
    assert result.stable == {"a"}


def test_part_of_an_effort_is_no_less_than_its_share() -> None:
    assert Effort(9.0, 10, 300, 30).part(6) == Effort(1.5, 2, 50, 30)
    assert Effort(9.0, 1, 1).part(4) == Effort(2.25, 1, 1)


def test_places_in_the_order_of_openings_are_balanced() -> None:
    orders = [opening_order(5, k) for k in range(6)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    places = np.mean([np.argsort(order) for order in orders], axis=0)
    np.testing.assert_array_equal(places, 2)
    assert len({tuple(order) for order in orders}) == 6


def test_order_follows_from_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        contenders = [machine.steady(name, LONG_S) for name in "abc"]
        interleave(contenders, Effort(1000, 20, 20), seed=seed, clock=machine)
        return machine.ran

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_drift_cancels_in_paired_ratios() -> None:
    """The machine gets four times slower while it measures; the true ratio is 1.2."""
    machine = Machine(lambda now: 1 + now / 20)
    contenders = [machine.steady("slow", 1.2 * LONG_S), machine.steady("fast", LONG_S)]
    result = interleave(contenders, Effort(60, 10, 300), clock=machine)
    slow, fast = (result.seconds[name] for name in ("slow", "fast"))
    assert fast[-1] > 3 * fast[0]
    assert paired_ratio(slow, fast).value == pytest.approx(1.2, abs=0.01)


def test_rounds_end_when_the_budget_is_spent() -> None:
    machine = Machine()
    contenders = [machine.steady("a", 0.1), machine.steady("b", 0.3)]
    result = interleave(contenders, Effort(8.0, min_rounds=2, max_rounds=300), clock=machine)
    assert len(result.seconds["a"]) == pytest.approx(20, abs=1)


@pytest.mark.parametrize(("budget_s", "expected"), [(0.0, 7), (1e6, 11)])
def test_rounds_stay_within_their_bounds_whatever_the_budget(budget_s: float, expected: int) -> None:
    machine = Machine()
    result = interleave([machine.steady("a", 1.0)], Effort(budget_s, min_rounds=7, max_rounds=11), clock=machine)
    assert len(result.seconds["a"]) == expected


def test_warm_up_lasts_until_no_contender_gets_faster() -> None:
    machine = Machine()
    falling = iter([10.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] + [1.0] * 100)
    contenders = [machine.contender("warming", lambda: next(falling)), machine.steady("steady", LONG_S)]
    result = interleave(contenders, Effort(1000, 5, 5), clock=machine)
    assert result.stable == {"warming", "steady"}
    assert result.warmup_rounds == 8 + WINDOW  # three rounds no faster than the fastest before them
    assert result.seconds["warming"] == pytest.approx([1.0] * 5)


def test_warm_up_that_never_ends_is_cut_and_said() -> None:
    machine = Machine()
    durations = (1000 * 0.9**k for k in range(1000))
    result = interleave([machine.contender("falling", lambda: next(durations))], Effort(1e9, 2, 2, 12), clock=machine)
    assert (result.stable, result.warmup_rounds) == (frozenset(), 12)
    durations = (1000 * 0.9**k for k in range(1000))
    result = interleave([machine.contender("falling", lambda: next(durations))], Effort(1.0, 2, 2, 12), clock=machine)
    assert (result.stable, result.warmup_rounds) == (frozenset(), WARMUP_ROUNDS)


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([1.0] * 5, False), ([1.0] * 6, True), ([1.0] * 3 + [0.96] * 3, True), ([1.0] * 3 + [0.94] * 3, False),
     ([1.0] * 3 + [1.5] * 3, True), ([9.0] * 9 + [1.0] * 6, True)],
)  # fmt: skip
def test_levelled_out_compares_the_last_three_with_the_three_before(seconds: list[float], level: bool) -> None:
    assert levelled_out(seconds) == level


def test_short_call_follows_an_untimed_one_of_its_own_and_a_long_one_does_not() -> None:
    machine = Machine()
    contenders = [machine.steady("short", SHORT_S / 2), machine.steady("long", 2 * measure.LONG_S)]
    interleave(contenders, Effort(1000, 10, 10), clock=machine)
    measured = machine.ran[-30:]
    assert (measured.count("short"), measured.count("long")) == (20, 10)
    assert set("".join(name[0] for name in measured).split("l")) <= {"", "ss", "ssss"}


def test_where_one_call_is_short_all_but_long_ones_get_an_untimed_call() -> None:
    machine = Machine()
    contenders = [machine.steady("short", SHORT_S / 2), machine.steady("longer", 2 * SHORT_S)]
    interleave(contenders, Effort(1000, 10, 10), clock=machine)
    assert (machine.ran[-40:].count("short"), machine.ran[-40:].count("longer")) == (20, 20)


def test_untimed_calls_go_on_until_neighbours_threads_are_asleep() -> None:
    machine = Machine()
    contenders = [machine.steady("short", measure.SETTLE_S / 4), machine.steady("long", 2 * measure.LONG_S)]
    interleave(contenders, Effort(1000, 10, 10), clock=machine)
    assert (machine.ran[-60:].count("short"), machine.ran[-60:].count("long")) == (50, 10)


def test_where_no_call_is_short_there_are_no_untimed_ones() -> None:
    machine = Machine()
    contenders = [machine.steady("one", 2 * SHORT_S), machine.steady("other", 3 * SHORT_S)]
    interleave(contenders, Effort(1000, 10, 10), clock=machine)
    assert len(machine.ran) == 20 + 2 * 2 * WINDOW


@pytest.mark.parametrize("calls", [(0.001,), (0.003, 0.02), (0.009, 0.011, 2.0), (LONG_S, 2 * LONG_S)])
def test_round_takes_no_longer_than_said_and_nearly_as_long(calls: tuple[float, ...]) -> None:
    machine, began = Machine(), []
    contenders = [machine.steady(str(k), seconds) for k, seconds in enumerate(calls)]
    interleave(contenders, Effort(0, 3, 3, 1), clock=machine, on_round=lambda: began.append(machine.now))
    first, *_, last = began
    assert (last - first) / 2 == pytest.approx(round_seconds(calls), rel=0.4)
    assert (last - first) / 2 <= round_seconds(calls) + 1e-9


def test_device_is_waited_for_inside_of_the_timed_region() -> None:
    machine = Machine()
    enqueued = machine.steady("device", 0.001)

    def synchronise() -> None:
        machine.now += 0.5

    result = interleave([Contender("device", enqueued.call, synchronise)], Effort(1, 10, 10), clock=machine)
    assert result.seconds["device"] == pytest.approx([0.501] * 10)


def test_two_contenders_of_one_name_are_refused_before_anything_runs() -> None:
    machine = Machine()
    with pytest.raises(ValueError, match="contenders: got same, same, expected a name of its own for each"):
        interleave([machine.steady("same", 1.0), machine.steady("same", 1.0)], clock=machine)
    assert machine.ran == []


def test_collector_is_off_while_timing_and_back_on_after_an_error() -> None:
    machine, seen = Machine(), []

    def call() -> None:
        seen.append(gc.isenabled())
        machine.now += 1.0
        if len(seen) > 20:
            raise RuntimeError("the contender broke")

    with pytest.raises(RuntimeError, match="broke"):
        interleave([Contender("a", call)], Effort(1000, 50, 50), clock=machine)
    assert not any(seen)
    assert gc.isenabled()


def test_interleaving_reaches_a_known_ratio_under_jitter_and_drift() -> None:
    rng = np.random.default_rng(0)
    machine = Machine(lambda now: 1 + 0.3 * np.sin(now / 5))
    contenders = [
        machine.contender(name, lambda seconds=seconds: seconds * float(np.exp(rng.normal(0, 0.05))))
        for name, seconds in (("a", 1.1 * LONG_S), ("b", LONG_S))
    ]
    result = interleave(contenders, Effort(1e6, 300, 300), clock=machine)
    ratio = paired_ratio(result.seconds["a"], result.seconds["b"])
    assert ratio.value == pytest.approx(1.1, abs=0.02)
    assert ratio.covers(1.1)
