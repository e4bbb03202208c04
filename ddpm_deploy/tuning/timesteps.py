"""Which timesteps suit a model: those from which one step lands nearest to its fine trajectories.

The idea is that of GITS (Chen et al. 2024): the trajectories of a model bend in much the same way for all samples, so
that a few of them tell where steps may be long. The error of every single step between two points of a fine grid is a
matrix, and the best path through it with a given number of steps is found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.grid import Grid
from ddpm_deploy.schedule import Float, NoiseSchedule
from ddpm_deploy.spacing import make_timesteps

GRID = (("logsnr", 48), ("linspace", 48), ("quadratic", 32))  # dense wherever one of the spacings is
LONGEST_MOVE = 8  # points of the grid

Array = NDArray[Any]


def fine_timesteps(schedule: NoiseSchedule) -> Float:
    """(L,) whole timesteps from T-1 to 0, about a hundred where there are so many."""
    parts = [make_timesteps(schedule, min(count, schedule.T), spacing) for spacing, count in GRID]
    return np.unique(np.concatenate(parts).round())[::-1]


def step_errors(grid: Grid, states: Sequence[Array], guesses: Sequence[Array]) -> Float:
    """(L, L+1) mean squared error per dimension of one deterministic step of first order from point i to point j.

    states: L+1 of (n, *S), the fine trajectories at each point and at the end. guesses: L of (n, *S), the predicted
    clean samples. Infinite where j is not after i.
    """
    errors = np.full((len(grid), len(grid) + 1), np.inf)
    for i, (x, d) in enumerate(zip(states, guesses, strict=False)):
        for j in range(i + 1, len(grid) + 1):
            ratio = grid.sigma[j] / grid.sigma[i]
            reached = ratio * x + (grid.alpha[j] - ratio * grid.alpha[i]) * d
            errors[i, j] = np.mean((reached - states[j]) ** 2)
    return errors


def best_path(costs: Float, steps: int) -> list[int]:
    """The `steps` points, the first of them 0, with the least sum of costs along the way to the end.

    costs: (L, L+1) from point i to point j, infinite where there is no way.
    """
    least = np.full(costs.shape[1], np.inf)
    least[0] = 0.0
    origins = []
    for _ in range(steps):
        totals = least[:-1, None] + costs
        origins.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    if not np.isfinite(least[-1]):
        raise ValueError(f"steps: got {steps}, expected at most the {len(costs)} points of the grid")
    path = [len(costs)]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[:0:-1]


def refine(path: Sequence[int], points: int, error: Callable[[Sequence[int]], float]) -> tuple[list[int], float]:
    """Move one point at a time along the grid while that lessens `error`; the path and its error.

    The matrix knows one-step errors only; this knows the solver that is to be used, with all its memory.
    """
    best, least = list(path), error(path)
    move = LONGEST_MOVE
    while move:
        before = least
        for k, way in product(range(1, len(best)), (-1, 1)):
            other = _moved(best, k, way * move)
            if _falls(other, points) and (value := error(other)) < least:
                best, least = other, value
        if least == before:
            move //= 2
    return best, least


def _moved(path: Sequence[int], k: int, by: int) -> list[int]:
    return [point + by if i == k else point for i, point in enumerate(path)]


def _falls(path: Sequence[int], points: int) -> bool:
    return path[-1] < points and all(a < b for a, b in pairwise(path))
