"""The noise schedule: how much of the image and how much noise is in `x_t`.

Symbols, as in docs/theory.md:

| note             | paper (Ho et al. 2020)      | code               | diffusers              |
|------------------|-----------------------------|--------------------|------------------------|
| image scale      | sqrt(alpha-bar_t)           | `alpha[t]`         | `alphas_cumprod**0.5`  |
| noise scale      | sqrt(1 - alpha-bar_t)       | `sigma[t]`         | `(1-alphas_cumprod)**0.5` |
| beta             | beta_t                      | `betas[t]`         | `betas`                |
| half log-SNR     | log(alpha/sigma)            | `lam[t]`           | `lambda_t`             |
| paper's alpha_t  | 1 - beta_t                  | `1 - betas[t]`     | `alphas`               |

Everything is float64 numpy. `t` counts from 0 (almost clean) to `T - 1` (almost pure noise); the clean image
itself, `alpha = 1, sigma = 0`, lies one step below `t = 0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

PREDICTIONS = ("eps", "v", "x0", "flow")
MAX_TIMESTEPS = 10**6


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The training-time diffusion `x_t = alpha[t] x_0 + sigma[t] eps`.

    alpha, sigma: (T,) float64, alpha not negative, sigma positive, alpha/sigma strictly falling with t.
    """

    alpha: Float
    sigma: Float

    def __post_init__(self) -> None:
        alpha = np.array(self.alpha, dtype=np.float64)
        sigma = np.array(self.sigma, dtype=np.float64)
        _check_tables(alpha, sigma)
        for name, table in (("alpha", alpha), ("sigma", sigma)):
            table.flags.writeable = False
            object.__setattr__(self, name, table)

    # -- constructors ---------------------------------------------------------------------------------------------

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas evenly spaced (Ho et al. 2020, section 4)."""
        return cls.from_betas(np.linspace(beta_start, beta_end, _count(T)))

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """Square roots of beta evenly spaced (Rombach et al. 2022, latent diffusion)."""
        return cls.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _count(T)) ** 2)

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """alpha-bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17), betas capped at `max_beta`."""
        u = np.arange(_count(T) + 1) / T
        return cls._from_decay(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)

    @classmethod
    def sigmoid(
        cls, T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> NoiseSchedule:
        """alpha-bar follows a sigmoid (Jabri et al. 2022, `gamma(t)` of Chen 2023), betas capped at `max_beta`."""
        u = np.arange(_count(T) + 1) / T
        s = 1 / (1 + np.exp(-(u * (end - start) + start) / tau))
        return cls._from_decay((s[-1] - s) / (s[-1] - s[0]), max_beta)

    @classmethod
    def flow_matching(cls, T: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """A straight line from image to noise, `alpha + sigma = 1` (Lipman et al. 2023); the last step is pure noise.

        shift: > 1 spends more of the steps near the noise (Esser et al. 2024, eq. 23).
        """
        u = np.arange(1, _count(T) + 1) / T
        sigma = shift * u / (1 + (shift - 1) * u)
        return cls(1 - sigma, sigma)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> NoiseSchedule:
        """betas: (T,), each in (0, 1]."""
        betas = _vector("betas", betas)
        wrong = np.flatnonzero(~((betas > 0) & (betas <= 1)))
        if wrong.size:
            raise ValueError(f"betas[{wrong[0]}]: got {betas[wrong[0]]}, expected a number in (0, 1]")
        return cls.from_alphas_cumprod(np.cumprod(1 - betas))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> NoiseSchedule:
        """alphas_cumprod: (T,), strictly falling, in [0, 1)."""
        abar = _vector("alphas_cumprod", alphas_cumprod)
        wrong = np.flatnonzero(~((abar >= 0) & (abar < 1)))
        if wrong.size:
            raise ValueError(f"alphas_cumprod[{wrong[0]}]: got {abar[wrong[0]]}, expected a number in [0, 1)")
        rising = np.flatnonzero(np.diff(abar) >= 0)
        if rising.size:
            i = rising[0]
            raise ValueError(f"alphas_cumprod[{i + 1}] = {abar[i + 1]} is not below [{i}] = {abar[i]}")
        return cls(np.sqrt(abar), np.sqrt(1 - abar))

    @classmethod
    def from_alpha_sigma(cls, alpha: ArrayLike, sigma: ArrayLike) -> NoiseSchedule:
        """alpha, sigma: (T,) each; any path from image to noise, variance preserving or not."""
        return cls(np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64))

    @classmethod
    def _from_decay(cls, decay: Float, max_beta: float) -> NoiseSchedule:
        return cls.from_betas(np.minimum(1 - decay[1:] / decay[:-1], max_beta))

    # -- tables ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.alpha)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return np.array_equal(self.alpha, other.alpha) and np.array_equal(self.sigma, other.sigma)

    @property
    def T(self) -> int:
        """Number of training timesteps."""
        return len(self.alpha)

    @cached_property
    def lam(self) -> Float:
        """(T,) half the log signal-to-noise ratio, `log(alpha / sigma)`; minus infinity where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    @cached_property
    def is_variance_preserving(self) -> bool:
        """Whether `alpha² + sigma² = 1` everywhere, as in DDPM."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1, rtol=0, atol=1e-9))

    @cached_property
    def alphas_cumprod(self) -> Float:
        """(T,) the paper's alpha-bar; only for a variance-preserving schedule."""
        self._require_variance_preserving("alphas_cumprod")
        return self.alpha**2

    @cached_property
    def betas(self) -> Float:
        """(T,) variance added by each forward step; only for a variance-preserving schedule."""
        self._require_variance_preserving("betas")
        return 1 - self.alpha**2 / np.concatenate([[1.0], self.alpha[:-1] ** 2])

    def _require_variance_preserving(self, name: str) -> None:
        if not self.is_variance_preserving:
            raise ValueError(f"{name}: only a variance-preserving schedule has it; use alpha and sigma")

    # -- between the integers -------------------------------------------------------------------------------------

    def at(self, t: ArrayLike) -> tuple[Float, Float]:
        """(alpha, sigma) at any t in [0, T-1], fractions included.

        Between two integers lambda is linear in t; the scale `alpha² + sigma²` (or `alpha + sigma` on a flow path)
        is kept. Beside a step with alpha = 0, where lambda has no bound, alpha and sigma are linear instead.
        """
        t = np.asarray(t, dtype=np.float64)
        if not np.all((t >= 0) & (t <= self.T - 1)):
            wrong = t[~((t >= 0) & (t <= self.T - 1))].flat[0]
            raise ValueError(f"t: got {wrong}, expected a number in [0, {self.T - 1}]")
        low = np.minimum(np.floor(t).astype(np.int64), self.T - 1)
        high = np.minimum(low + 1, self.T - 1)
        w = t - low
        alpha = (1 - w) * self.alpha[low] + w * self.alpha[high]
        sigma = (1 - w) * self.sigma[low] + w * self.sigma[high]
        smooth = (w > 0) & (self.alpha[high] > 0)
        lam = np.where(smooth, (1 - w) * self.lam[low] + w * np.where(smooth, self.lam[high], 0), 0)
        if self.is_variance_preserving:
            bent = 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))
        else:
            total = alpha + sigma
            bent = total / (1 + np.exp(-lam)), total / (1 + np.exp(lam))
        return np.where(smooth, bent[0], alpha), np.where(smooth, bent[1], sigma)

    def t_of_lam(self, lam: ArrayLike) -> Float:
        """The t at which `log(alpha / sigma)` has the value `lam`, clamped to the timesteps with alpha > 0."""
        finite = np.flatnonzero(np.isfinite(self.lam))
        if not finite.size:
            return np.zeros(np.shape(lam))
        return np.interp(-np.asarray(lam, dtype=np.float64), -self.lam[finite], finite.astype(np.float64))

    # -- the diffusion itself -------------------------------------------------------------------------------------

    def add_noise(self, x0: NDArray[Any], eps: NDArray[Any], t: ArrayLike) -> NDArray[Any]:
        """Closed form of the forward process, `alpha x_0 + sigma eps` (Ho et al. 2020, eq. 4).

        x0, eps: (B, *S). t: () or (B,).
        """
        alpha, sigma = self._broadcast(t, x0)
        return alpha * x0 + sigma * eps

    def forward_step(self, x_prev: NDArray[Any], eps: NDArray[Any], t: ArrayLike) -> NDArray[Any]:
        """One step of the forward chain, from t-1 to t (Ho et al. 2020, eq. 2).

        `t = 0` starts from the clean image. Any (alpha, sigma) path: the scale is `alpha_t / alpha_{t-1}`.
        """
        t = np.asarray(t)
        ratio, variance = transition(*self._before(t), self.alpha[t], self.sigma[t])
        return _lift(ratio, x_prev) * x_prev + _lift(np.sqrt(variance), x_prev) * eps

    def posterior(self, x0: NDArray[Any], x_t: NDArray[Any], t: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and variance of `q(x_{t-1} | x_t, x_0)` (Ho et al. 2020, eq. 6-7).

        x0, x_t: (B, *S). t: () or (B,) integers. The variance broadcasts against the mean; it is 0 at t = 0.
        """
        t = np.asarray(t)
        from_x, from_x0, variance = posterior_coefficients(*self._before(t), self.alpha[t], self.sigma[t])
        mean = _lift(from_x, x_t) * x_t + _lift(from_x0, x_t) * x0
        return mean, _lift(variance, x_t)

    # -- one prediction into another ------------------------------------------------------------------------------

    def to_x0(self, x: NDArray[Any], prediction: NDArray[Any], t: ArrayLike, kind: str) -> NDArray[Any]:
        """The clean image that a network's prediction at x means. kind: one of `PREDICTIONS`."""
        from_x, from_m = x0_coefficients(*self.at(t), kind)
        return _lift(from_x, x) * x + _lift(from_m, x) * prediction

    def from_x0(self, x: NDArray[Any], x0: NDArray[Any], t: ArrayLike, kind: str) -> NDArray[Any]:
        """The prediction of the given kind that means the clean image x0 at x; the inverse of `to_x0`."""
        from_x, from_m = x0_coefficients(*self.at(t), kind)
        return (x0 - _lift(from_x, x) * x) / _lift(from_m, x)

    def convert(self, x: NDArray[Any], prediction: NDArray[Any], t: ArrayLike, source: str, to: str) -> NDArray[Any]:
        """Turn a prediction of kind `source` at x into one of kind `to`."""
        return self.from_x0(x, self.to_x0(x, prediction, t, source), t, to)

    def velocity(self, x0: NDArray[Any], eps: NDArray[Any], t: ArrayLike) -> NDArray[Any]:
        """`v = alpha eps - sigma x_0` (Salimans & Ho 2022)."""
        alpha, sigma = self._broadcast(t, x0)
        return alpha * eps - sigma * x0

    def _broadcast(self, t: ArrayLike, like: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        alpha, sigma = self.at(t)
        return _lift(alpha, like), _lift(sigma, like)

    def _before(self, t: NDArray[Any]) -> tuple[Float, Float]:
        """(alpha, sigma) one step below the integer t; the clean image below 0."""
        if not np.issubdtype(t.dtype, np.integer):
            raise ValueError(f"t: got dtype {t.dtype}, expected integers")
        if not np.all((t >= 0) & (t < self.T)):
            raise ValueError(f"t: got {t}, expected integers in [0, {self.T - 1}]")
        first = t == 0
        return np.where(first, 1.0, self.alpha[t - 1]), np.where(first, 0.0, self.sigma[t - 1])


def transition(alpha_s: ArrayLike, sigma_s: ArrayLike, alpha_t: ArrayLike, sigma_t: ArrayLike) -> tuple[Any, Any]:
    """Scale and variance of the Gaussian step from (alpha_s, sigma_s) to the noisier (alpha_t, sigma_t).

    For DDPM `sqrt(1 - beta_t)` and `beta_t`; in general Kingma et al. 2021 (VDM), eq. 2-3.
    """
    ratio = np.divide(alpha_t, alpha_s)
    return ratio, np.maximum(np.square(sigma_t) - np.square(ratio * sigma_s), 0)


def posterior_coefficients(
    alpha_s: ArrayLike, sigma_s: ArrayLike, alpha_t: ArrayLike, sigma_t: ArrayLike
) -> tuple[Any, Any, Any]:
    """`q(x_s | x_t, x_0)`: the factors of x_t and x_0 in its mean, and its variance (Ho et al. 2020, eq. 7)."""
    ratio, variance = transition(alpha_s, sigma_s, alpha_t, sigma_t)
    share_s, share = np.square(sigma_s) / np.square(sigma_t), variance / np.square(sigma_t)
    return ratio * share_s, alpha_s * share, np.square(sigma_s) * share


def x0_coefficients(alpha: ArrayLike, sigma: ArrayLike, kind: str) -> tuple[Float, Float]:
    """`(p_x, p_m)` with `x_0 = p_x x + p_m prediction`."""
    alpha, sigma = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if kind == "eps":
        if np.any(alpha == 0):
            raise ValueError(
                "prediction: got 'eps' at a timestep with alpha = 0, where the image cannot be recovered from it; "
                "use a model with 'v', 'x0' or 'flow' prediction, or leave that timestep out"
            )
        return 1 / alpha, -sigma / alpha
    if kind == "v":  # for alpha² + sigma² = 1 these are alpha and -sigma
        scale = alpha**2 + sigma**2
        return alpha / scale, -sigma / scale
    if kind == "x0":
        return np.zeros_like(alpha), np.ones_like(alpha)
    if kind == "flow":
        scale = alpha + sigma
        return 1 / scale, -sigma / scale
    raise ValueError(f"prediction: got {kind!r}, expected one of {', '.join(PREDICTIONS)}")


def _check_tables(alpha: Float, sigma: Float) -> None:
    if alpha.ndim != 1 or alpha.shape != sigma.shape or alpha.size == 0:
        raise ValueError(f"alpha, sigma: got shapes {alpha.shape}, {sigma.shape}, expected (T,) twice, T at least 1")
    for name, table, good in (("alpha", alpha, alpha >= 0), ("sigma", sigma, sigma > 0)):
        wrong = np.flatnonzero(~(good & np.isfinite(table)))
        if wrong.size:
            bound = ">= 0" if name == "alpha" else "> 0"
            raise ValueError(f"{name}[{wrong[0]}]: got {table[wrong[0]]}, expected a finite number {bound}")
    rising = np.flatnonzero(np.diff(alpha / sigma) >= 0)
    if rising.size:
        i = rising[0]
        raise ValueError(f"alpha/sigma[{i + 1}] is not below [{i}]: the signal-to-noise ratio must fall with t")


def _vector(name: str, values: ArrayLike) -> Float:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 1:
        raise ValueError(f"{name}: got shape {table.shape}, expected (T,)")
    return table


def _count(T: int) -> int:
    if isinstance(T, bool) or not isinstance(T, int | np.integer) or not 1 <= T <= MAX_TIMESTEPS:
        raise ValueError(f"T: got {T!r}, expected a whole number of timesteps, 1 to {MAX_TIMESTEPS}")
    return int(T)


def _lift(table: Any, like: NDArray[Any]) -> NDArray[Any]:
    """Give () or (B,) coefficients the rank and dtype of a (B, *S) array."""
    table = np.asarray(table).astype(like.dtype if np.issubdtype(like.dtype, np.floating) else np.float64)
    return table.reshape(table.shape + (1,) * (like.ndim - table.ndim)) if table.ndim else table
