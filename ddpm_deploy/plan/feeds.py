"""A plan as the float32 arrays that the `step` and `sampler` graphs take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.plan.plan import Noise, Plan

STATE_SIZE = 5  # images: the largest state of the solvers here, for graphs whose state is fixed

Feeds = dict[str, NDArray[np.float32]]


def plan_feeds(
    plan: Plan,
    sample_rank: int,
    noise: Noise = None,
    *,
    learned_variance: bool = False,
    state_size: int | None = None,
) -> Feeds:
    """Every input of a `sampler` graph but `x_T` and the conditions: the tables, and noise of rank 2 + sample_rank.

    sample_rank: 3 for pictures. noise: as in `Plan.run`; a deterministic plan needs none and is given zeros of shape
    (N, 1, 1, ...), which the graph broadcasts. Other arguments as in `plan_tables`.
    """
    tables = plan_tables(plan, learned_variance=learned_variance, state_size=state_size)
    return {**tables, "noise": _noise(plan, noise, sample_rank)}


def plan_tables(plan: Plan, *, learned_variance: bool = False, state_size: int | None = None) -> Feeds:
    """`t` (N,), `predict` (N, 2), `clip` (N, 2) with infinite bounds where there is none, `update` (N, K, K+3).

    learned_variance: for a graph whose network predicts its variance, with `log_variance` (N, 2): the plan's, or zeros,
    which leave the noise as it is. state_size: K of a graph that fixes it; a smaller state is padded by idle images.
    A `step` graph takes one row of these for each sample of its batch: `{name: table[rows]}`.
    """
    update = plan.update if state_size is None else _padded(plan, state_size)
    tables = {"t": plan.t, "predict": plan.predict, "clip": plan.clip, "update": update}
    if learned_variance:
        tables["log_variance"] = np.zeros((len(plan), 2)) if plan.log_variance is None else plan.log_variance
    elif plan.log_variance is not None:
        raise ValueError(f"plan: got {plan.solver!r} with a learned variance, but the graph predicts none")
    return {name: table.astype(np.float32) for name, table in tables.items()}


def no_noise(plan: Plan, sample_rank: int) -> NDArray[np.float32]:
    """Zeros (N, 1, 1, ...) for a plan that draws none."""
    return np.zeros((len(plan), 1, *[1] * sample_rank), np.float32)


def no_guidance(plan: Plan) -> NDArray[np.float32]:
    """Weights (N, 1) of 1, which draw by the condition as it is."""
    return np.ones((len(plan), 1), np.float32)


def _padded(plan: Plan, size: int) -> NDArray[np.float64]:
    N, K = plan.update.shape[:2]
    if size < K:
        raise ValueError(f"plan: got a state of {K} images, expected at most {size}; export with state_size={K}")
    update = np.zeros((N, size, size + 3))
    update[:, :K, :K] = plan.update[:, :, :K]
    update[:, :K, size:] = plan.update[:, :, K:]
    return update


def _noise(plan: Plan, noise: Noise, sample_rank: int) -> NDArray[np.float32]:
    if noise is None:
        if not plan.is_deterministic:
            raise ValueError(f"noise: got None, but the plan of {plan.solver!r} draws noise; give it")
        return no_noise(plan, sample_rank)
    given = np.stack([noise(row) for row in range(len(plan))]) if callable(noise) else np.asarray(noise)
    missing, rows = sample_rank + 2 - given.ndim, given.shape[:1]
    if missing < 0 or (missing == 0 and rows not in ((1,), (len(plan),))):
        raise ValueError(
            f"noise: got shape {given.shape}, expected {len(plan)} rows of (B, *S), S of rank {sample_rank}"
        )
    full = given.reshape(*[1] * missing, *given.shape)
    return np.ascontiguousarray(np.broadcast_to(full, (len(plan), *full.shape[1:])), np.float32)
