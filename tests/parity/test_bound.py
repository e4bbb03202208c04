"""Bits/dim against what is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ddpm_deploy.bundle import Defaults, Manifest, ModelInfo, OutputAffine
from ddpm_deploy.parity.bound import bits_per_dim
from ddpm_deploy.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.2)
MANIFEST = Manifest(
    model=ModelInfo("gaussian", "1", "none", {}),
    sample_shape=(4, 8),
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


def data(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 4, 8)).astype(np.float32)


def oracle(feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The best prediction where the data are N(0, 1): E[x0 | x] = alpha x, as alpha^2 + sigma^2 = 1."""
    alpha, _ = SCHEDULE.at(feeds["t"].astype(np.float64))
    out: np.ndarray = (alpha[:, None, None] * feeds["x"]).astype(np.float32)
    return out


def test_the_best_predictor_of_a_gaussian_reaches_the_bound_in_closed_form() -> None:
    """Its squared error is sigma^2 per dimension, so that the sum is known."""
    t = np.arange(49, -1, -1)
    alpha, sigma = SCHEDULE.alpha[t], SCHEDULE.sigma[t]
    snr = (alpha / sigma) ** 2
    expected = float(np.sum((snr[1:] - snr[:-1]) / 2 * sigma[:-1] ** 2)) / math.log(2)
    assert bits_per_dim(oracle, MANIFEST, data(400), {}, 50) == pytest.approx(expected, rel=0.02)


def test_the_terms_are_the_divergences_of_the_posteriors() -> None:
    """Half the fall of the signal-to-noise ratio is what Ho et al. 2020, eq. 8, weigh the error of the mean by."""
    x0, predicted = 0.7, 0.2
    for t in (1, 10, 49):
        mean, variance = SCHEDULE.posterior(np.array([x0]), np.array([0.3]), t)
        other, _ = SCHEDULE.posterior(np.array([predicted]), np.array([0.3]), t)
        divergence = ((mean - other) ** 2 / (2 * variance)).item()
        snr = (SCHEDULE.alpha / SCHEDULE.sigma) ** 2
        assert (snr[t - 1] - snr[t]) / 2 * (x0 - predicted) ** 2 == pytest.approx(divergence, rel=1e-9)


def test_a_worse_predictor_costs_more_bits() -> None:
    x0 = data(20)
    bits = [bits_per_dim(lambda feeds, k=k: oracle(feeds) * k, MANIFEST, x0, {}, 25) for k in (1.0, 0.9, 0.5)]
    assert bits[0] < bits[1] < bits[2]


def test_all_prediction_types_of_one_predictor_have_the_same_bits() -> None:
    def as_noise(feeds: dict[str, np.ndarray]) -> np.ndarray:
        alpha, sigma = (v[:, None, None] for v in SCHEDULE.at(feeds["t"].astype(np.float64)))
        out: np.ndarray = ((feeds["x"] - alpha * oracle(feeds)) / sigma).astype(np.float32)
        return out

    x0 = data(5)
    eps = bits_per_dim(as_noise, replace(MANIFEST, prediction="eps"), x0, {}, 25)
    assert eps == pytest.approx(bits_per_dim(oracle, MANIFEST, x0, {}, 25), rel=1e-4)
