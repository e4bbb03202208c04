"""How large a batch is of use: beyond some size a call only takes longer, and who is in it waits longer for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

NEARLY_ALL = 0.97  # of the best throughput
SLOW_S = 0.25  # a call that takes so long is not made twice, nor twice as large where that gains nothing
AGAIN_S = 0.02


def useful_batch(sizes: Sequence[int], evaluate: Callable[[int], object]) -> int:
    """The smallest of the batch sizes with nearly the throughput of the best. sizes: ascending. evaluate: one call."""
    return smallest_useful(sizes, _times(sizes, lambda size: _fastest(lambda: evaluate(size))))


def smallest_useful(sizes: Sequence[int], seconds: Mapping[int, float]) -> int:
    """The same from the seconds of calls at some of the sizes; between them a call takes what lies between."""
    known = sorted(seconds)
    among = [size for size in sizes if known[0] <= size <= known[-1]]
    rates = among / np.interp(among, known, [seconds[size] for size in known])
    return next(size for size, rate in zip(among, rates, strict=True) if rate >= NEARLY_ALL * rates.max())


def _times(sizes: Sequence[int], seconds: Callable[[int], float]) -> dict[int, float]:
    """Of the smallest size and each that is twice the last, until calls are slow and gain nothing."""
    found: dict[int, float] = {}
    last = 0
    for size in sizes:
        if size >= 2 * last or size == sizes[-1]:
            found[size] = seconds(size)
            if last and found[size] > SLOW_S and size / found[size] < last / found[last] / NEARLY_ALL:
                break
            last = size
    return found


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls."""
    until, found = time.perf_counter() + AGAIN_S, []
    while True:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
        if found[-1] > SLOW_S or (len(found) > 1 and time.perf_counter() > until):
            return min(found)
