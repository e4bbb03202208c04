"""All figures of one set of samples: how near it is to real ones held out, and to those that the model knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.evaluate.data import RealData
from ddpm_deploy.evaluate.features import Features, right
from ddpm_deploy.evaluate.frechet import frechet_distance
from ddpm_deploy.evaluate.jackknife import jackknife_error, paired_error
from ddpm_deploy.evaluate.kernel import kernel_distance
from ddpm_deploy.evaluate.manifold import nearest, precision_recall
from ddpm_deploy.evaluate.sliced import sliced_distance

Array = NDArray[Any]


@dataclass(frozen=True)
class Figures:
    """Distances are to the real samples held out; errors are standard errors over the samples that are judged.

    frechet, kernel, precision, recall: on the features. sliced: on the numbers of the samples. precision, recall: of
    equally many samples. nearest_median, nearest_least: Euclidean distance to the nearest known sample, in network
    range. class_accuracy: part of the classes, or of other facts, asked for that the classifier sees, or None.
    """

    samples: int
    frechet: float
    frechet_error: float
    kernel: float
    kernel_error: float
    sliced: float
    sliced_error: float
    precision: float
    recall: float
    nearest_median: float
    nearest_least: float
    class_accuracy: float | None = None


class Judge:
    """Computes the figures; what concerns the real samples alone is computed once."""

    def __init__(self, data: RealData, features: Features) -> None:
        self.data = data
        self.features = features
        self._held_out = features.of(data.held_out.x)

    def judge(self, samples: Array, asked: Array | None = None) -> Figures:
        """All figures of samples (n, *S). asked: (n,) the classes that they were drawn for, or (n, k) facts."""
        found = self.features.of(samples)
        count = min(len(found), len(self._held_out))
        precision, recall = precision_recall(self._held_out[:count], found[:count])
        distances, _ = nearest(samples, self.data.known.x)
        kernel, kernel_error = kernel_distance(found, self._held_out)
        return Figures(
            len(samples),
            *_with_error(self._frechet, found),
            kernel,
            kernel_error,
            *_with_error(self._sliced, samples),
            precision,
            recall,
            float(np.median(distances)),
            float(distances.min()),
            self._accuracy(samples, asked),
        )

    def distance(self, found: Array) -> tuple[float, float]:
        """The Fréchet distance of samples whose features are given, and its error."""
        return _with_error(self._frechet, found)

    def difference_error(self, found: Array, other: Array) -> float:
        """Of how much further one set is than another, both as features of samples from the same noise in turn."""
        return paired_error(self._frechet, found, other)

    def baseline(self, count: int) -> Figures:
        """Of so many real samples that the model knows: what samples as good as real ones get.

        Their nearest neighbours are those of the real samples held out, as each known one is its own.
        """
        known = self.data.known.part(slice(count))
        found = self.judge(known.x, known.labels)
        distances, _ = nearest(self.data.held_out.x, self.data.known.x)
        return Figures(**vars(found) | {
            "nearest_median": float(np.median(distances)), "nearest_least": float(distances.min()),
            "class_accuracy": self.features.accuracy,
        })  # fmt: skip

    def _frechet(self, found: Array) -> float:
        return frechet_distance(found, self._held_out)

    def _sliced(self, samples: Array) -> float:
        return sliced_distance(samples, self.data.held_out.x)

    def _accuracy(self, samples: Array, asked: Array | None) -> float | None:
        if asked is None or self.features.classify is None:
            return None
        return right(self.features.classify(samples), asked)


def _with_error(figure: Callable[[Array], float], samples: Array) -> tuple[float, float]:
    return figure(samples), jackknife_error(figure, samples)
