"""The most that a contender answers in time: a search over rates, on the same trace for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.serving.load import Trial

LOWEST, HIGHEST = 0.05, 1.25  # times the ceiling
WANTED = 0.85  # times the ceiling; the target, which is one of the rates that are tried


@dataclass(frozen=True)
class Search:
    """rate: the highest that held, 0 if none did. trials: all that were made, in their order."""

    rate: float
    trials: tuple[Trial, ...]


def steps_between(ceiling: float, ratio: float) -> list[float]:
    """What is tried: rates from a small share of the ceiling to beyond it, each `ratio` times the last."""
    below, above = (int(math.log(end / WANTED, ratio)) for end in (LOWEST, HIGHEST))
    return [WANTED * ceiling * ratio**i for i in range(below, above + 1)]


def search(offer: Callable[[float], Trial], among: Sequence[float], start: float) -> Search:
    """Find the highest rate that holds, taking for granted that all below it do.

    It begins at the rate next to `start`, goes up or down in steps that double, and then halves what is left.
    """
    trials: list[Trial] = []

    def holds(i: int) -> bool:
        trials.append(offer(among[i]))
        return trials[-1].holds

    first = min(range(len(among)), key=lambda i: abs(among[i] - start))
    good, bad = _bracket(holds, first, len(among))
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return Search(among[good] if good >= 0 else 0.0, tuple(trials))


def _bracket(holds: Callable[[int], bool], start: int, count: int) -> tuple[int, int]:
    """Indices of a rate that holds, -1 for none, and of one that does not, `count` for none."""
    i, step, up = start, 1, holds(start)
    while True:
        last, i = i, i + (step if up else -step)
        if i < 0 or i >= count:
            return (last, count) if up else (-1, last)
        if holds(i) != up:
            return (last, i) if up else (i, last)
        step *= 2
