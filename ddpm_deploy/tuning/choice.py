"""From timings to a choice: the fastest candidate for each batch size, and as few different ones as that allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

TOLERANCE = 0.03

Ratios = Mapping[int, Mapping[str, float]]


def choose(ratios: Ratios, tolerance: float = TOLERANCE) -> dict[int, str]:
    """The name of a candidate for each batch size.

    ratios: by batch size and name, the time over that of the fastest; a name is left out where it was not timed.
    tolerance: what counts as equally fast. Among the smallest sets that are equally fast everywhere, the fastest.
    """
    names = sorted({name for row in ratios.values() for name in row})
    for size in range(1, len(names) + 1):
        covers = [chosen for chosen in combinations(names, size) if _cover(ratios, chosen, tolerance)]
        if covers:
            best = min(covers, key=lambda chosen: sum(_least(row, chosen) for row in ratios.values()))
            return {batch: min(best, key=lambda name: row.get(name, math.inf)) for batch, row in ratios.items()}
    raise ValueError("ratios: got a batch size without any candidate, expected at least one for each")


def _cover(ratios: Ratios, chosen: Sequence[str], tolerance: float) -> bool:
    return all(_least(row, chosen) <= 1 + tolerance for row in ratios.values())


def _least(row: Mapping[str, float], chosen: Sequence[str]) -> float:
    return min(row.get(name, math.inf) for name in chosen)
