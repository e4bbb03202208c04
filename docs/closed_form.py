"""Denoisers and data in closed form, for the pictures: no training, no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from ddpm_deploy.plan import Denoise
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

Float = NDArray[np.float64]

MIXTURE = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.3, 1.6]), 0.18  # weights, centres, deviation
SMOOTH = 0.4  # a wider deviation, at which the orders of convergence show from 40 steps on


def normal_density(x: Float, mean: float | Float = 0.0, deviation: float | Float = 1.0) -> Float:
    """The Gaussian bell."""
    return np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (np.sqrt(2 * np.pi) * deviation)


def mixture_denoiser(schedule: NoiseSchedule, weights: Float, centres: Float, deviation: float) -> Denoise:
    """The exact mean of `x_0` given `x_t` where `x_0` comes from Gaussians of one deviation around the centres.

    centres: (K, D). With deviation 0 the centres are a data set, and this is the best denoiser it allows.
    """

    def denoise(x: Float, t: Float) -> Float:
        alpha, sigma = (table[:, None] for table in schedule.at(t))
        spread = alpha**2 * deviation**2 + sigma**2
        away = x[:, None] - alpha[:, :, None] * centres  # (B, K, D)
        score = np.log(weights) - 0.5 * np.square(away).sum(-1) / spread
        share = np.exp(score - score.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return share @ centres + alpha * deviation**2 / spread * np.einsum("bk,bkd->bd", share, away)

    return denoise


def toy_denoiser(schedule: NoiseSchedule, deviation: float = MIXTURE[2]) -> Denoise:
    """The exact denoiser of `MIXTURE`, points on a line."""
    return mixture_denoiser(schedule, MIXTURE[0], MIXTURE[1][:, None], deviation)


def toy_density(x: Float, alpha: float | Float = 1.0, sigma: float | Float = 0.0) -> Float:
    """The density of `x_t` for `MIXTURE`; of the data itself by default."""
    weights, centres, deviation = MIXTURE
    width = np.sqrt(alpha**2 * deviation**2 + sigma**2)
    return sum(w * normal_density(x, alpha * c, width) for w, c in zip(weights, centres, strict=True))


def digits() -> Float:
    """(1797, 64) real digits, 8x8, in [-1, 1]."""
    return load_digits().data / 8 - 1


def toy_samples(solver: str, steps: int) -> Float:
    """64 fixed starting points taken to the `SMOOTH` mixture, on steps uniform in lambda."""
    schedule = NoiseSchedule.linear()
    t = schedule.t_of_lam(np.linspace(schedule.lam[-1], schedule.lam[0], steps))
    t[0], t[-1] = schedule.T - 1, 0
    plan = make_plan(solver, schedule, timesteps=t, prediction="x0")
    return plan.run(toy_denoiser(schedule, SMOOTH), np.linspace(-2.5, 2.5, 64)[:, None])


def rms(x: Float) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(x).mean()))
