"""How large a batch is of use: beyond some size a call only takes longer, and who is in it waits longer for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

NEARLY_ALL = 0.98  # of the best throughput
SLOW_S = 0.25  # a call that takes so long is made once a round, and none twice as large where that gains nothing
AGAIN_S, ROUNDS = 0.02, 2


def useful_batch(sizes: Sequence[int], evaluate: Callable[[int], object]) -> int:
    """The smallest of the batch sizes with nearly the throughput of the largest. sizes: ascending. evaluate: one call.

    ROUNDS over the sizes, and a line through the fastest calls of each, so that no single hiccup decides.
    """
    fastest: dict[int, float] = {}
    for _ in range(ROUNDS):
        for size, seconds in _times(sizes, evaluate).items():
            fastest[size] = min(seconds, fastest.get(size, seconds))
    return smallest_useful(sizes, fastest)


def smallest_useful(sizes: Sequence[int], seconds: Mapping[int, float]) -> int:
    """The same from the seconds of calls at some of the sizes: a fixed part, and one for each sample."""
    known = np.array(sorted(seconds))
    took = np.array([seconds[size] for size in known])
    each, fixed = np.polyfit(known, took, 1, w=1 / took) if len(known) > 1 else (took[0] / known[0], 0.0)
    among = [size for size in sizes if size <= known[-1]]
    rates = among / (max(fixed, 0.0) + max(each, 0.0) * np.array(among) + 1e-12)
    return next(size for size, rate in zip(among, rates, strict=True) if rate >= NEARLY_ALL * rates[-1])


def _times(sizes: Sequence[int], evaluate: Callable[[int], object]) -> dict[int, float]:
    """Of the smallest size and each that is twice the last, until calls are slow and gain nothing."""
    found: dict[int, float] = {}
    last = 0
    for size in sizes:
        if size >= 2 * last or size == sizes[-1]:
            found[size] = _fastest(size, evaluate)
            if last and found[size] > SLOW_S and size / found[size] < last / found[last] / NEARLY_ALL:
                break
            last = size
    return found


def _fastest(size: int, evaluate: Callable[[int], object]) -> float:
    """Seconds of the fastest of a few calls."""
    until = time.perf_counter() + AGAIN_S
    found: list[float] = []
    while True:
        begin = time.perf_counter()
        evaluate(size)
        found.append(time.perf_counter() - begin)
        if found[-1] > SLOW_S or time.perf_counter() > until:
            return min(found)
