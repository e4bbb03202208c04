"""How much of one set lies where the other is: improved precision and recall, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 3
BLOCK = 1024

Array = NDArray[Any]


def precision_recall(real: Array, drawn: Array, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The part of the drawn that is within the real ones' manifold, and the reverse (Kynkäänniemi et al. 2019, eq. 1).

    The manifold of a set is the union of balls around its members, each as large as the distance to the member's
    `neighbours`-th neighbour in the set. real: (n, D). drawn: (m, D); give equally many, as the balls shrink with n.
    """
    return _covered(real, drawn, neighbours), _covered(drawn, real, neighbours)


def nearest(samples: Array, known: Array) -> tuple[Array, Array]:
    """Euclidean distance to the nearest of the known ones, and which it is; (n,) each. samples, known: any shape."""
    found = [(block.min(axis=1), block.argmin(axis=1)) for block in _distances(_flat(samples), _flat(known))]
    least, which = zip(*found, strict=True)
    return np.concatenate(least), np.concatenate(which)


def _covered(manifold: Array, points: Array, neighbours: int) -> float:
    manifold, points = _flat(manifold), _flat(points)
    if len(manifold) <= neighbours:
        raise ValueError(f"samples: got {len(manifold)}, expected more than the {neighbours} neighbours")
    blocks = _distances(manifold, manifold)
    radii = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in blocks])
    return float(np.mean(np.concatenate([(block <= radii).any(axis=1) for block in _distances(points, manifold)])))


def _distances(x: Array, y: Array) -> Iterator[Array]:
    """(block, m) distances of some of x (n, D) to all of y (m, D)."""
    squares = np.sum(y**2, axis=1)
    for begin in range(0, len(x), BLOCK):
        part = x[begin : begin + BLOCK]
        yield np.sqrt(np.maximum(np.sum(part**2, axis=1)[:, None] + squares - 2 * part @ y.T, 0))


def _flat(x: Array) -> Array:
    return np.asarray(x, np.float64).reshape(len(x), -1)
