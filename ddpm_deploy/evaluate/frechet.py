"""Fréchet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Moments:
    """mean: (D,). covariance: (D, D), unbiased."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features: Array) -> Moments:
        """features: (n, D), n at least 2."""
        x = np.asarray(features, np.float64)
        if len(x) < 2:
            raise ValueError(f"features: got {len(x)} samples, expected at least 2 for a covariance")
        return cls(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(x: Array, y: Array) -> float:
    """Of features (n, D) and (m, D). With few samples it is too large: compare sets of the same size only."""
    return moments_distance(Moments.of(x), Moments.of(y))


def moments_distance(x: Moments, y: Moments) -> float:
    """`|m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½)`.

    The trace of that root is the sum of the singular values of `C_x^½ C_y^½`, so that a singular covariance needs no
    special care.
    """
    cross = np.linalg.svd(_root(x.covariance) @ _root(y.covariance), compute_uv=False).sum()
    apart = np.sum((x.mean - y.mean) ** 2)
    return float(apart + np.trace(x.covariance) + np.trace(y.covariance) - 2 * cross)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)
