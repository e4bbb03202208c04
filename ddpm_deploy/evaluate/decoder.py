"""The last step of the chain, from x_1 to the data: how probable the real pixel values are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOW, HIGH = -1.0, 1.0  # network range of pictures, whose levels are spread evenly over it


def log_likelihood(x0: Array, mean: Array, log_variance: Array | float, levels: int | None) -> Array:
    """log p(x_0 | x_1) of each number, in nats; same shape as x0.

    levels: how many values a pixel can have, 256 for 8 bits: then the mass of a bin (Ho et al. 2020, eq. 13). None is
    for data that are not quantised: the Gaussian's density.
    """
    if levels is None:
        return -0.5 * ((x0 - mean) ** 2 * np.exp(-log_variance) + log_variance + math.log(2 * math.pi))
    return bin_log_mass(x0, mean, np.exp(-0.5 * np.asarray(log_variance)), levels)


def bin_log_mass(x0: Array, mean: Array, precision_root: Array | float, levels: int) -> Array:
    """Log of the Gaussian's mass in the bin of each value; the outermost bins reach to infinity.

    precision_root: 1 over the standard deviation. The mass is computed in the tail where it loses no digits.
    """
    half = (HIGH - LOW) / (levels - 1) / 2
    upper = np.where(x0 > HIGH - half, np.inf, (x0 + half - mean) * precision_root)
    lower = np.where(x0 < LOW + half, -np.inf, (x0 - half - mean) * precision_root)
    right = lower > -upper  # mirrored, so that both ends lie in the left tail
    return _log_difference(np.where(right, -lower, upper), np.where(right, -upper, lower))


def _log_difference(upper: Array, lower: Array) -> Array:
    """log(cdf(upper) - cdf(lower)) of the standard normal distribution."""
    from scipy.special import log_ndtr

    log_upper = log_ndtr(upper)
    return np.asarray(log_upper + np.log1p(-np.exp(log_ndtr(lower) - log_upper)))
