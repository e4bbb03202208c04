"""The error of a figure that is no plain mean: what becomes of it when a tenth of the samples is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = 10
SEED = 0

Array = NDArray[Any]


def jackknife_error(figure: Callable[[Array], float], samples: Array, groups: int = GROUPS) -> float:
    """Standard error of `figure(samples)` over the samples, at least `groups` of them (Efron 1982, chapter 3)."""
    group = np.random.default_rng(SEED).permutation(len(samples)) % groups
    return leave_out_error(np.array([figure(samples[group != k]) for k in range(groups)]))


def paired_error(figure: Callable[[Array], float], one: Array, other: Array, groups: int = GROUPS) -> float:
    """Standard error of `figure(one) - figure(other)`, both (n, D), whose rows belong together."""
    width = one.shape[1]
    return jackknife_error(
        lambda both: figure(both[:, :width]) - figure(both[:, width:]), np.hstack([one, other]), groups
    )


def leave_out_error(values: Array) -> float:
    """Standard error of a figure whose values with each group left out are given."""
    k = len(values)
    return math.sqrt((k - 1) / k * float(np.sum((values - values.mean()) ** 2)))
