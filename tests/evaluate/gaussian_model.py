"""A model that is right: Gaussian data, whose best denoiser and whose bound have closed forms.

Written from the formulas, with nothing of `ddpm_deploy.evaluate`, so that it can judge it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ddpm_deploy.bundle import Defaults, Manifest, ModelInfo, OutputAffine
from ddpm_deploy.schedule import NoiseSchedule

MEAN, DEVIATION = 0.2, 0.5
SHAPE = (2, 3, 4)
SCHEDULE = NoiseSchedule.linear(60, 1e-3, 0.15)
MANIFEST = Manifest(
    model=ModelInfo("gaussian", "1", "none", {}),
    sample_shape=SHAPE,
    output=OutputAffine((1.0,), (0.0,), "1"),
    prediction="x0",
    variance="small",
    schedule=SCHEDULE,
    clip=None,
    conditions=(),
    defaults=Defaults("ddim", 10, "leading"),
    network=None,
    files=(),
    reference=None,
)

Evaluate = Callable[[Mapping[str, Any]], Any]


def data(n: int, seed: int = 0) -> np.ndarray:
    return (MEAN + DEVIATION * np.random.default_rng(seed).standard_normal((n, *SHAPE))).astype(np.float32)


def guess(x: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """E[x_0 | x_t = x]."""
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def spread(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Var[x_0 | x_t]."""
    return DEVIATION**2 * sigma**2 / (alpha**2 * DEVIATION**2 + sigma**2)


def denoiser(schedule: NoiseSchedule = SCHEDULE, prediction: str = "x0") -> Evaluate:
    """The best network of a prediction type."""

    def evaluate(feeds: Mapping[str, Any]) -> np.ndarray:
        x = feeds["x"].astype(np.float64)
        alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in schedule.at(feeds["t"].astype(np.float64)))
        x0 = guess(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        found = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]
        return found.astype(np.float32)

    return evaluate


def with_(**changes: Any) -> Manifest:
    return replace(MANIFEST, **changes)


def entropy_bits() -> float:
    """Of the data, a lower limit of every bound: differential, per dimension."""
    return 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2)
