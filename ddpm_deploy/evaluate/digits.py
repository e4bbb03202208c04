"""Judging generated digits by a classifier of real ones, and by their distance to the pictures trained on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.digits import digits_arrays

CLASSES = 10

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """Figures of one set of pictures.

    top_probability: the classifier's mean confidence, 0 to 1. shares: (10,) part of the set in each class.
    nearest_median, nearest_least: Euclidean distance to the nearest training picture, in network range.
    """

    top_probability: float
    shares: tuple[float, ...]
    nearest_median: float
    nearest_least: float


class DigitJudge:
    """A small neural network trained on the real training digits; it knows nothing of the diffusion model."""

    def __init__(self, seed: int = 0) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        pictures, labels = digits_arrays()
        self._training = _flat(pictures)
        self._classifier = MLPClassifier((128,), alpha=1.0, max_iter=100, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._classifier.fit(self._training, labels)

    @cached_property
    def accuracy(self) -> float:
        """Part of the held-out real digits that are recognised."""
        pictures, labels = digits_arrays(held_out=True)
        return float(np.mean(self.classify(pictures) == labels))

    @cached_property
    def real(self) -> Verdict:
        """The held-out real digits, judged like generated ones: what the others are compared with."""
        return self.judge(digits_arrays(held_out=True)[0])

    def classify(self, pictures: Array) -> Array:
        """The most probable digit of each picture. pictures: (n, 1, 8, 8) in [-1, 1]."""
        return np.asarray(self._probabilities(pictures).argmax(axis=1))

    def confidence(self, pictures: Array) -> Array:
        """Of each picture the probability of its most probable digit, (n,). pictures: (n, 1, 8, 8) in [-1, 1]."""
        return np.asarray(self._probabilities(pictures).max(axis=1))

    def judge(self, pictures: Array) -> Verdict:
        """All figures of a set. pictures: (n, 1, 8, 8) in [-1, 1]."""
        probabilities = self._probabilities(pictures)
        shares = np.bincount(probabilities.argmax(axis=1), minlength=CLASSES) / len(pictures)
        nearest = self._nearest(pictures)
        return Verdict(
            top_probability=float(probabilities.max(axis=1).mean()),
            shares=tuple(shares.tolist()),
            nearest_median=float(np.median(nearest)),
            nearest_least=float(nearest.min()),
        )

    def _probabilities(self, pictures: Array) -> Array:
        return np.asarray(self._classifier.predict_proba(np.clip(_flat(pictures), -1, 1)))

    def _nearest(self, pictures: Array) -> Array:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=1).fit(self._training)
        return np.asarray(index.kneighbors(_flat(pictures))[0][:, 0])


def _flat(pictures: Array) -> Array:
    return pictures.reshape(len(pictures), -1).astype(np.float64)
