"""A denoising problem with a known answer: pixels drawn from a mixture of Gaussians.

Everything here is written from the formulas, with no use of the package, so that it can judge the package.
"""

import numpy as np
from scipy.integrate import solve_ivp

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-0.8, 0.1, 0.9])
DEVIATIONS = np.array([0.3, 0.25, 0.35])


def clean_image(x, alpha, sigma):
    """E[x_0 | alpha x_0 + sigma eps = x], pixel by pixel."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    away = x[..., None] - alpha * MEANS
    log_share = np.log(WEIGHTS) - 0.5 * np.log(variance) - 0.5 * away**2 / variance
    share = np.exp(log_share - log_share.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    return np.sum(share * (MEANS + alpha * DEVIATIONS**2 / variance * away), axis=-1)


def prediction(x, alpha, sigma, kind, size=1.0):
    """What a perfect network of this prediction type answers, for pixels `size` times those of the mixture."""
    x0 = size * clean_image(x / size, alpha, sigma / size)
    if kind == "x0":
        return x0
    eps = (x - alpha * x0) / sigma
    return {"eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]


def levels(alphas_cumprod):
    """The function t -> (alpha, sigma) of a variance-preserving diffusion, lambda linear between the integers."""
    table = 0.5 * np.log(alphas_cumprod / (1 - alphas_cumprod))

    def level(t):
        lam = np.interp(t, np.arange(len(table)), table)
        return 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))

    return level


def network(level, kind="eps", size=1.0):
    """A perfect network (x, t) -> prediction, t a number or one for each sample, all the same."""

    def denoise(x, t):
        return prediction(x, *level(float(np.ravel(t)[0])), kind, size)

    return denoise


def exact_sample(x, lam_start, lam_end):
    """Follow the probability-flow ODE of a variance-preserving diffusion, then jump to the clean image.

    x: (B,) at lam_start. In z = x / alpha and lambda the ODE reads dz/dlam = -exp(-lam) eps.
    """

    def split(lam):
        return 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))

    def slope(lam, z):
        alpha, sigma = split(lam)
        return -sigma / alpha * prediction(alpha * z, alpha, sigma, "eps")

    start, end = split(lam_start), split(lam_end)
    solution = solve_ivp(slope, (lam_start, lam_end), x / start[0], method="DOP853", rtol=1e-13, atol=1e-14)
    return clean_image(end[0] * solution.y[:, -1], *end)
