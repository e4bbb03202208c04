"""Weights of the multistep solvers: integrals of interpolating polynomials over one step.

Row i of a plan steps from entry i of the grid to entry i+1.
Weights come newest first. With u in [0, 1] along the step and h its length in lambda, older points lie at u < 0.
"""

from __future__ import annotations

from math import factorial

import numpy as np

from ddpm_deploy.grid import Grid
from ddpm_deploy.schedule import Float

ADAMS_BASHFORTH = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def data_weights(grid: Grid, i: int, order: int, second_difference: float = 1.0) -> Float:
    """Weights of the clean images in `x_{i+1} = sigma_{i+1}/sigma_i x_i + sum w_j d_{i-j}` (Lu et al. 2022b, eq. 4.1).

    second_difference: scales the quadratic term of the polynomial; see `solvers.dpmpp_3m`.
    """
    h = grid.lam[i + 1] - grid.lam[i]
    moments = grid.alpha[i + 1] * exponential_moments(-h, order)
    if order == 3:
        moments[2] *= second_difference
    return _lagrange_integrals(_positions(grid.lam, i, order), moments)


def noise_weights(grid: Grid, i: int, order: int) -> Float:
    """Weights of the noises in `x_{i+1} = alpha_{i+1}/alpha_i x_i + sum w_j eps_{i-j}`, polynomial in lambda (DEIS)."""
    h = grid.lam[i + 1] - grid.lam[i]
    moments = -grid.sigma[i + 1] * exponential_moments(h, order)
    return _lagrange_integrals(_positions(grid.lam, i, order), moments)


def adams_weights(grid: Grid, i: int, order: int, variable: bool) -> Float:
    """The same sum with a polynomial in sigma/alpha (iPNDM), for even steps or for the actual ones."""
    with np.errstate(divide="ignore"):
        rho = grid.sigma / grid.alpha
    step = grid.alpha[i + 1] * (rho[i + 1] - rho[i])
    if not variable:
        return step * np.array(ADAMS_BASHFORTH[order])
    moments = step / np.arange(1, order + 1)
    return _lagrange_integrals(_positions(rho, i, order), moments)


def exponential_moments(z: float, count: int) -> Float:
    """`int_0^1 |z| e^{z(1-u)} u^k du`, k = 0 ... count-1; each is `k! phi_{k+1}(z) |z|`, positive.

    A series for small |z|, where the recurrence would cancel.
    """
    if abs(z) < 0.5:
        terms = np.arange(30)
        return np.array(
            [sum(factorial(k) * z ** (n + 1) / factorial(n + k + 1) for n in terms) for k in range(count)]
        ) * (1.0 if z > 0 else -1.0)
    moments = [np.expm1(z)]
    for k in range(1, count):
        moments.append(k * moments[-1] / z - 1)
    return np.array(moments) * (1.0 if z > 0 else -1.0)


def unip_weights(grid: Grid, i: int, order: int, variant: str) -> Float:
    """UniPC's predictor (Zhao et al. 2023, eq. 3 and 9): weights of d_i, d_{i-1}, ... in the step from i."""
    h = grid.lam[i + 1] - grid.lam[i]
    if order == 1:
        return np.array([-grid.alpha[i + 1] * np.expm1(-h)])
    r = _positions(grid.lam, i, order)[1:]
    rhos = np.array([0.5]) if order == 2 else _unipc_solve(r, h, variant)
    return _difference_weights(grid.alpha[i + 1], h, r, rhos, variant)


def unic_weights(grid: Grid, i: int, order: int, variant: str) -> Float:
    """UniPC's corrector of x_i: weights of d_i (the new one), d_{i-1} (the base), d_{i-2}, ..."""
    h = grid.lam[i] - grid.lam[i - 1]
    r = np.append(_positions(grid.lam, i - 1, order)[1:], 1.0)
    rhos = np.array([0.5]) if order == 1 else _unipc_solve(r, h, variant)
    base, *older, new = _difference_weights(grid.alpha[i], h, r, rhos, variant)
    return np.array([new, base, *older])


def _unipc_solve(r: Float, h: float, variant: str) -> Float:
    """The a_m that match every power of h (Zhao et al. 2023, theorem 3.1)."""
    phi = exponential_moments(-h, len(r) + 1) / h  # k! phi_{k+1}(-h)
    scale = _b_of_h(h, variant) / -h
    powers = np.arange(1, len(r) + 1)
    return np.asarray(np.linalg.solve(r[None, :] ** (powers[:, None] - 1), phi[1:] / scale), np.float64)


def _difference_weights(alpha: float, h: float, r: Float, rhos: Float, variant: str) -> Float:
    """Turn `phi_1 d_0 + B(h) sum rho_m (d_m - d_0) / r_m` into one weight for each d."""
    differences = -alpha * _b_of_h(h, variant) * rhos / r
    return np.append(-alpha * np.expm1(-h) - differences.sum(), differences)


def _b_of_h(h: float, variant: str) -> float:
    return float(-h if variant == "bh1" else np.expm1(-h))


def _positions(axis: Float, i: int, order: int) -> Float:
    """Where the last `order` points lie, in steps from point i: 0 first, then negative."""
    return np.asarray((axis[i - np.arange(order)] - axis[i]) / (axis[i + 1] - axis[i]))


def _lagrange_integrals(u: Float, moments: Float) -> Float:
    """Weights w with `sum w_j u_j^k = moments_k`: exact for polynomials through the points u."""
    return np.linalg.solve(u[None, :] ** np.arange(len(u))[:, None], moments).astype(np.float64)
