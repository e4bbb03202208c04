"""The variational bound, term by term: L_T + sum of L_{t-1} + L_0 (Ho et al. 2020, eq. 5).

Each term is a sum over the numbers of a sample, and what is kept here is its mean over them, in nats per dimension;
`BITS` times that is bits/dim. The bound of a respaced chain is that of a model with fewer steps: quick, and looser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.evaluate.decoder import log_likelihood
from ddpm_deploy.noise import row_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.schedule import Float, posterior_coefficients, transition
from ddpm_deploy.solvers import make_plan

BITS = 1 / math.log(2)

Array = NDArray[Any]
Evaluate = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class ReverseChain:
    """The model's own Gaussian steps, S of them from the noisiest down to the data.

    plan: of solver "ddpm": where the network is evaluated and what its output means. alpha, sigma: (S,) there.
    log_small, log_large: (S,) the posterior's variance and beta. In the last row, whose posterior has no variance, the
    former is that of the row before (Nichol & Dhariwal 2021, as their code clips it). variance: "small", "large" or
    "learned".
    """

    plan: Plan
    alpha: Float
    sigma: Float
    log_small: Float
    log_large: Float
    variance: str

    @classmethod
    def of(cls, manifest: Manifest, rows: int | None = None, spacing: str = "linspace") -> ReverseChain:
        """The chain in so many rows; None is all T. spacing: a key of `spacing.SPACINGS`."""
        schedule = manifest.schedule
        plan = make_plan("ddpm", schedule, rows, spacing, manifest.prediction, manifest.clip)
        alpha, sigma = schedule.at(plan.t)
        before = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
        _, _, small = posterior_coefficients(*before, alpha, sigma)
        _, large = transition(*before, alpha, sigma)
        small[-1] = small[-2] if len(small) > 1 else large[-1]
        return cls(plan, alpha, sigma, np.log(small), np.log(large), manifest.variance)

    def __len__(self) -> int:
        return len(self.plan)

    def log_variance(self, row: int, output: Array) -> Array | float:
        """Of the model's step, a number or one for each number of the sample. output: raw, of the network."""
        small, large = float(self.log_small[row]), float(self.log_large[row])
        if self.variance == "learned":
            share = (np.split(output, 2, axis=1)[1].astype(np.float64) + 1) / 2
            return share * large + (1 - share) * small
        last = row + 1 == len(self)
        return large if self.variance == "large" and not last else small

    def terms(self, row: int, x0: Array, x: Array, output: Array, levels: int | None) -> Array:
        """L_{t-1} of one row, or L_0 of the last: (n,) nats per dimension.

        x0: (n, *S) the data. x: (n, *S) noisy, as the network saw it. output: (n, *S') what it said.
        """
        d = self._clean(row, x, output)
        log_variance = self.log_variance(row, output)
        if row + 1 == len(self):
            return _per_sample(-log_likelihood(x0.astype(np.float64), d, log_variance, levels))
        from_x0 = float(self.plan.update[row, 0, 1])
        log_ratio = log_variance - self.log_small[row]
        distance = (from_x0 * (x0 - d)) ** 2 * np.exp(-log_variance)
        return _per_sample((log_ratio + np.expm1(-log_ratio) + distance) / 2)

    def prior(self, x0: Array) -> Array:
        """L_T: what is left of the data at the end of the forward process; (n,) nats per dimension."""
        variance = float(self.sigma[0] ** 2)
        mean = float(self.alpha[0]) * x0.astype(np.float64)
        return _per_sample((mean**2 + variance - 1 - math.log(variance)) / 2)

    def noisy(self, row: int, x0: Array, z: Array) -> Array:
        """What the network sees at a row, float32."""
        return (self.alpha[row] * x0 + self.sigma[row] * z).astype(np.float32)

    def _clean(self, row: int, x: Array, output: Array) -> Array:
        p_x, p_m = self.plan.predict[row]
        kept = output[:, : x.shape[1]].astype(np.float64)
        return np.clip(p_x * x.astype(np.float64) + p_m * kept, *self.plan.clip[row])


@dataclass(frozen=True, eq=False)
class Task:
    """Whose bound is to be measured. x0: (n, *S) in network range. conditions: (n, ...) each.

    levels: of a pixel, or None, as in `decoder.log_likelihood`. draws: of noise for each sample.
    """

    x0: Array
    conditions: Mapping[str, Array]
    levels: int | None
    draws: int = 1
    seed: int = 0
    batch_size: int = 64

    @property
    def pairs(self) -> int:
        """Of a sample and a draw, at each row."""
        return len(self.x0) * self.draws


def measure_row(evaluate: Evaluate, chain: ReverseChain, task: Task, row: int) -> Array:
    """(n, draws) nats per dimension of one row; the noise depends on seed, sample, draw and row alone."""
    found = np.empty(task.pairs)
    for begin in range(0, task.pairs, task.batch_size):
        pairs = np.arange(begin, min(begin + task.batch_size, task.pairs))
        chosen = pairs // task.draws
        x0 = task.x0[chosen]
        x = chain.noisy(row, x0, row_noise(task.seed, pairs.tolist(), row, x0.shape[1:]))
        steering = {name: array[chosen] for name, array in task.conditions.items()}
        output = evaluate({"x": x, "t": np.full(len(x), chain.plan.t[row], np.float32), **steering})
        found[pairs] = chain.terms(row, x0, x, output, task.levels)
    return found.reshape(len(task.x0), task.draws)


def measure(evaluate: Evaluate, chain: ReverseChain, task: Task) -> Bound:
    """The whole bound at once; `measure_row` for those who want to stop in between."""
    return Bound.of(chain, task, np.stack([measure_row(evaluate, chain, task, row) for row in range(len(chain))]))


@dataclass(frozen=True, eq=False)
class Bound:
    """What was measured, in nats per dimension. t: (S,). prior: (n,) L_T. terms: (S, n, draws), the last row L_0."""

    t: Float
    prior: Array
    terms: Array

    @classmethod
    def of(cls, chain: ReverseChain, task: Task, terms: Array) -> Bound:
        return cls(chain.plan.t, chain.prior(task.x0), terms)

    @property
    def totals(self) -> Array:
        """(n, draws) bits/dim."""
        return (self.terms.sum(axis=0) + self.prior[:, None]) * BITS

    @property
    def bits(self) -> float:
        """Bits/dim of the data set."""
        return float(self.totals.mean())

    @property
    def error(self) -> float:
        """Standard error of `bits` as that of the distribution which the samples were drawn from."""
        return standard_error(self.totals.mean(axis=1))

    @property
    def noise_error(self) -> float | None:
        """The part of `error` that more draws of noise would lessen: for these samples alone. Needs two draws."""
        n, draws = self.totals.shape
        return None if draws < 2 else float(np.sqrt(self.totals.var(axis=1, ddof=1).mean() / (n * draws)))

    @property
    def per_step(self) -> Array:
        """(S,) mean term in bits/dim, L_0 the last."""
        return self.terms.mean(axis=(1, 2)) * BITS

    def parts(self) -> Iterator[tuple[str, float]]:
        """Name and bits/dim of L_T, of the sum of the middle terms, and of L_0."""
        yield "L_T", float(self.prior.mean() * BITS)
        yield "L_1 ... L_T-1", float(self.per_step[:-1].sum())
        yield "L_0", float(self.per_step[-1])


def standard_error(values: Array) -> float:
    """Of a mean; of one value it is not known, and infinite."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _per_sample(values: Array) -> Array:
    return values.reshape(len(values), -1).mean(axis=1)
