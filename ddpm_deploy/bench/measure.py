"""Interleaved timing: every contender in every round, in an order drawn anew, so that drift of the machine cancels."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

WINDOW = 3  # rounds that are compared with as many before them
WARMUP_ROUNDS = 3 * WINDOW
STABLE = 0.05
SHORT_S = 0.05  # where a contender of a group is shorter than this, every call is preceded by untimed ones,
SETTLE_S = 0.01  # for so long at least,
LONG_S = 1.0  # unless it is longer than this itself
OPENINGS = 6

Clock = Callable[[], float]


def _at_once() -> None:
    """Nothing to wait for: the call returned when the work was done."""


@dataclass(frozen=True)
class Contender:
    """What is timed. call: one unit of work. synchronise: waits for the device, inside of the timed region."""

    name: str
    call: Callable[[], object]
    synchronise: Callable[[], object] = _at_once

    def seconds(self, clock: Clock = time.perf_counter) -> float:
        """The time of one call, the device's work included."""
        began = clock()
        self.call()
        self.synchronise()
        return clock() - began


@dataclass(frozen=True)
class Effort:
    """How long to measure one group. budget_s: of all contenders together, without the warm-up; rounds go on until it
    is spent, but never fewer than min_rounds nor more than max_rounds. The warm-up takes as long again at most, or
    `WARMUP_ROUNDS` where that is longer."""

    budget_s: float = 10.0
    min_rounds: int = 10
    max_rounds: int = 300
    max_warmup: int = 30

    def part(self, n: int) -> Effort:
        """The n-th part of it, each with a warm-up of its own."""
        return replace(
            self,
            budget_s=self.budget_s / n,
            min_rounds=-(-self.min_rounds // n),
            max_rounds=-(-self.max_rounds // n),
        )


@dataclass(frozen=True)
class Rounds:
    """seconds: of each contender, (R,), the same round at the same place. stable: whose warm-up levelled out.

    openings: how many of the rounds followed each opening of the contenders.
    """

    seconds: Mapping[str, list[float]]
    warmup_rounds: int
    stable: frozenset[str]
    openings: tuple[int, ...]


def interleave(
    contenders: Sequence[Contender],
    effort: Effort = Effort(),
    *,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    on_round: Callable[[], object] = _at_once,
) -> Rounds:
    """Time all contenders side by side, after a warm-up until their times level out.

    In each round every contender runs once, in an order drawn from `seed`. Where one of them is shorter than `SHORT_S`,
    the timed call of each follows untimed ones of its own, one or as many as `SETTLE_S` takes: until its neighbour's
    threads are asleep, its own awake, and its caches full, the steady state that a service sees. Calls longer than
    `LONG_S` are spared that, as it would not show. Garbage is collected between rounds, not in them.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders: got {', '.join(names)}, expected a name of its own for each")
    order = np.random.default_rng(seed)
    with _collector_off():
        warmup, stable = _warm_up(contenders, effort, clock)
        fastest = {name: min(times) for name, times in warmup.items()}
        again = {name for name, best in fastest.items() if _settles(best, min(fastest.values()))}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        began = clock()
        while _goes_on(len(seconds[names[0]]), clock() - began, effort):
            for k in order.permutation(len(contenders)):
                if names[k] in again:
                    _settle(contenders[k], clock)
                seconds[names[k]].append(contenders[k].seconds(clock))
            gc.collect(0)
            on_round()
    return Rounds(seconds, len(warmup[names[0]]), stable, (len(seconds[names[0]]),))


def interleave_anew(
    opened: Callable[[int], Sequence[Contender]],
    effort: Effort,
    openings: int = OPENINGS,
    *,
    clock: Clock = time.perf_counter,
) -> Rounds:
    """`interleave` in several parts, before each of which `opened(k)` opens all contenders anew.

    A copy of a program keeps the memory that it was given: the copy is part of what is measured, and one is no sample.
    stable: whose warm-ups all levelled out.
    """
    parts = [interleave(opened(k), effort.part(openings), seed=k, clock=clock) for k in range(openings)]
    return Rounds(
        {name: [s for part in parts for s in part.seconds[name]] for name in parts[0].seconds},
        sum(part.warmup_rounds for part in parts),
        frozenset.intersection(*(part.stable for part in parts)),
        tuple(count for part in parts for count in part.openings),
    )


def opening_order(n: int, opening: int) -> list[int]:
    """In which order n contenders are opened for the k-th time; every second order is the one before, backwards.

    So what hangs on the place in the order, as memory does, is the same for all in the mean.
    """
    order = list(range(n)) if opening < 2 else np.random.default_rng(opening // 2).permutation(n).tolist()
    return order[::-1] if opening % 2 else order


def _settle(contender: Contender, clock: Clock) -> None:
    began = clock()
    contender.seconds(clock)
    while clock() - began < SETTLE_S:
        contender.seconds(clock)


def _settles(call_s: float, fastest_s: float) -> bool:
    """Whether untimed calls come before a timed one. fastest_s: of the group."""
    return fastest_s < SHORT_S and call_s < LONG_S


def round_seconds(calls_s: Sequence[float]) -> float:
    """How long a round of contenders takes at most, one call of each in seconds, with the untimed ones before them."""
    untimed = (call + (SETTLE_S if call < SETTLE_S else 0.0) for call in calls_s if _settles(call, min(calls_s)))
    return sum(calls_s) + sum(untimed)


def _goes_on(rounds: int, spent_s: float, effort: Effort) -> bool:
    return rounds < effort.min_rounds or (rounds < effort.max_rounds and spent_s < effort.budget_s)


def _warm_up(
    contenders: Sequence[Contender], effort: Effort, clock: Clock
) -> tuple[dict[str, list[float]], frozenset[str]]:
    """Rounds until no contender has got faster, within the budget; their times, and whose levelled out."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    began, stable = clock(), frozenset[str]()
    for rounds in range(1, effort.max_warmup + 1):
        for contender in contenders:
            seconds[contender.name].append(contender.seconds(clock))
        stable = frozenset(name for name, times in seconds.items() if levelled_out(times))
        if len(stable) == len(seconds):
            break
        if rounds >= WARMUP_ROUNDS and clock() - began > effort.budget_s:
            break
    return seconds, stable


def levelled_out(seconds: Sequence[float]) -> bool:
    """Whether the median of the last `WINDOW` rounds is at most `STABLE` below the fastest of as many before."""
    if len(seconds) < 2 * WINDOW:
        return False
    before, last = seconds[-2 * WINDOW : -WINDOW], seconds[-WINDOW:]
    return statistics.median(last) >= min(before) * (1 - STABLE)


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
