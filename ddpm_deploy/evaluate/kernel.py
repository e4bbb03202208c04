"""Kernel distance of two sets of features: the squared maximum mean discrepancy of KID (Binkowski et al. 2018)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.evaluate.jackknife import leave_out_variance

Array = NDArray[Any]


def kernel_distance(x: Array, y: Array) -> tuple[float, float]:
    """The unbiased estimate, and its standard error by leaving out one sample at a time.

    x: (n, D). y: (m, D). The kernel is `(x·y / D + 1)³`. Being unbiased, the estimate may be below zero, and sets of
    different sizes may be compared.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"features: got {n} and {m} samples, expected at least 3 of each")
    own_x, own_y, cross = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(own_x, 0)
    np.fill_diagonal(own_y, 0)
    among_x, among_y, between = own_x.sum(), own_y.sum(), cross.sum()

    def estimate(among_x: Any, among_y: Any, between: Any, n: int, m: int) -> Any:
        return among_x / (n * (n - 1)) + among_y / (m * (m - 1)) - 2 * between / (n * m)

    without_x = estimate(among_x - 2 * own_x.sum(axis=1), among_y, between - cross.sum(axis=1), n - 1, m)
    without_y = estimate(among_x, among_y - 2 * own_y.sum(axis=1), between - cross.sum(axis=0), n, m - 1)
    error = math.sqrt(leave_out_variance(without_x) + leave_out_variance(without_y))
    return float(estimate(among_x, among_y, between, n, m)), error


def _kernel(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)
