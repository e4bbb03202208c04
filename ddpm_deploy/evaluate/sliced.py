"""Sliced Wasserstein distance: how far apart two sets are along random directions (Bonneel et al. 2015)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = 256
SEED = 0

Array = NDArray[Any]


def sliced_distance(x: Array, y: Array, directions: int = DIRECTIONS, seed: int = SEED) -> float:
    """The mean over directions of the 1-Wasserstein distance of the projections, in the units of the samples.

    x: (n, *S). y: (m, *S). The directions depend on the seed and the shape alone, so that differences are exact.
    """
    x, y = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, y))
    slopes = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    slopes /= np.linalg.norm(slopes, axis=0)
    return float(np.mean([wasserstein_1d(a, b) for a, b in zip((x @ slopes).T, (y @ slopes).T, strict=True)]))


def wasserstein_1d(a: Array, b: Array) -> float:
    """The area between the distribution functions of two sets of numbers, of any sizes."""
    if len(a) == len(b):
        return float(np.abs(np.sort(a) - np.sort(b)).mean())
    a, b = np.sort(a), np.sort(b)
    values = np.sort(np.concatenate([a, b]))
    below_a, below_b = (np.searchsorted(part, values[:-1], side="right") / len(part) for part in (a, b))
    return float(np.sum(np.abs(below_a - below_b) * np.diff(values)))
