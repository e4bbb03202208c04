"""The error of a figure that is no plain mean: what becomes of it when a tenth of the samples is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = 10
SEED = 0

Array = NDArray[Any]


def jackknife_error(figure: Callable[[Array, Array], float], x: Array, y: Array, groups: int = GROUPS) -> float:
    """Standard error of `figure(x, y)` over samples of both sets, each of which has at least `groups` of them.

    Leaves out one group at a time of one of the sets (Efron 1982, chapter 3); the two variances add.
    """
    over_x = [figure(part, y) for part in _parts(x, groups)]
    over_y = [figure(x, part) for part in _parts(y, groups)]
    return math.sqrt(sum(leave_out_variance(np.array(values)) for values in (over_x, over_y)))


def leave_out_variance(values: Array) -> float:
    """Of a figure whose values with each group left out are given."""
    k = len(values)
    return float((k - 1) / k * np.sum((values - values.mean()) ** 2))


def _parts(x: Array, groups: int) -> Iterator[Array]:
    group = np.random.default_rng(SEED).permutation(len(x)) % groups
    for k in range(groups):
        yield x[group != k]
