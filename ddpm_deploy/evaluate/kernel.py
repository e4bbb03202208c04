"""Kernel distance of two sets of features: the squared maximum mean discrepancy of KID (Binkowski et al. 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.evaluate.jackknife import leave_out_error

Array = NDArray[Any]


def kernel_distance(x: Array, y: Array) -> tuple[float, float]:
    """The unbiased estimate, and its standard error over the samples x, by leaving out one at a time.

    x: (n, D). y: (m, D), what x is compared with, taken as it is. The kernel is `(x·y / D + 1)³`. Being unbiased, the
    estimate may be below zero, and sets of different sizes may be compared.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"features: got {n} and {m} samples, expected at least 3 of each")
    own_x, own_y, cross = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(own_x, 0)
    np.fill_diagonal(own_y, 0)
    among_x, among_y, between = own_x.sum(), own_y.sum(), cross.sum()

    def estimate(among_x: Any, between: Any, n: int) -> Any:
        return among_x / (n * (n - 1)) + among_y / (m * (m - 1)) - 2 * between / (n * m)

    without_each = estimate(among_x - 2 * own_x.sum(axis=1), between - cross.sum(axis=1), n - 1)
    return float(estimate(among_x, between, n)), leave_out_error(without_each)


def _kernel(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)
