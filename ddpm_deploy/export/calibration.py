"""Inputs to calibrate int8 ranges with: states of real trajectories, spread over all timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.job import example_conditions
from ddpm_deploy.parity.next_state import Evaluate, ddpm_plan, short_plan, teacher_forced
from ddpm_deploy.plan import Plan

SAMPLES = 4  # trajectories of the DDPM chain; each timestep is taken from one of them in turn

Array = NDArray[Any]


def calibration_feeds(
    reference: Evaluate,
    manifest: Manifest,
    n: int,
    seed: int = 0,
    conditions: Mapping[str, Array] | None = None,
) -> list[dict[str, Array]]:
    """n feeds of one sample each: half from a DDPM chain over all T, half from the default solver's own trajectories.

    The activations' ranges change with t, and the few states of a fast solver are not those of the chain, so both are
    needed. conditions: (m, ...) each; sample i is steered by row i modulo m. None is every class in turn, or noise.
    """
    if n < 2:
        raise ValueError(f"n: got {n}, expected at least 2 feeds")
    default = short_plan(manifest)
    of_chain, of_solver = (n + 1) // 2, n // 2
    samples = max(SAMPLES, -(-of_solver // len(default)))
    steering = _steering(manifest, conditions, samples)
    chain = ddpm_plan(manifest, of_chain)
    return _taken(reference, manifest, chain, of_chain, SAMPLES, steering, seed) + _taken(
        reference, manifest, default, of_solver, samples, steering, seed
    )


def _taken(
    reference: Evaluate,
    manifest: Manifest,
    plan: Plan,
    count: int,
    samples: int,
    conditions: Mapping[str, Array],
    seed: int,
) -> list[dict[str, Array]]:
    """`count` states, over the rows as evenly as they go, samples in turn."""
    rows = np.linspace(0, len(plan) - 1, count).round().astype(int) if count > 1 else np.zeros(count, int)
    wanted: dict[int, list[int]] = {}
    for k, row in enumerate(rows.tolist()):
        wanted.setdefault(row, []).append(k % samples)
    feeds = []
    for step in teacher_forced(reference, manifest, plan, samples, conditions, seed):
        for sample in wanted.get(step.row, ()):
            feeds.append({name: array[sample : sample + 1].copy() for name, array in step.feeds.items()})
    return feeds


def _steering(manifest: Manifest, given: Mapping[str, Array] | None, samples: int) -> dict[str, Array]:
    conditions = example_conditions(manifest.conditions, samples) if given is None else given
    return {name: array[np.arange(samples) % len(array)] for name, array in conditions.items()}
