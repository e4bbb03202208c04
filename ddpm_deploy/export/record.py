"""What export records in reference.npz: values of the float32 reference, to be compared with anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.guidance import guided_feeds
from ddpm_deploy.noise import noise_source
from ddpm_deploy.parity.next_state import Evaluate, ddpm_plan, short_plan, teacher_forced
from ddpm_deploy.reference import Reference, Trajectory

SEED = 0
POINTS = 8  # single evaluations at least
SAMPLES = 7  # that the points are taken from, in turn
GUIDANCE = np.array([2.0, 0.5], np.float32)  # of the trajectory's samples
LARGE = 2**14  # elements; from here on one sample is enough

Array = NDArray[Any]


def torch_evaluate(network: nn.Module) -> Evaluate:
    """The float32 reference: the torch module itself, its inputs by position."""

    def evaluate(feeds: Mapping[str, Array]) -> Array:
        with torch.inference_mode():
            out: Array = network(*(torch.from_numpy(np.ascontiguousarray(a)) for a in feeds.values())).numpy()
        return out

    return evaluate


def make_reference(reference: Evaluate, manifest: Manifest, conditions: Mapping[str, Array]) -> Reference:
    """Evaluations spread over all timesteps, and a trajectory of the model's default solver, guided where that can be.

    conditions: example values, at least two of each.
    """
    feeds, predictions = _points(reference, manifest, conditions)
    x, t = feeds.pop("x"), feeds.pop("t")
    return Reference(x, t, predictions, _trajectory(reference, manifest, conditions), feeds)


def _points(reference: Evaluate, manifest: Manifest, conditions: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
    """One sample of each row of a short DDPM chain."""
    most = SAMPLES if np.prod(manifest.sample_shape) < LARGE else 1
    n = min([most, *(len(array) for array in conditions.values())])
    rows = []
    for step in teacher_forced(reference, manifest, ddpm_plan(manifest, POINTS), n, conditions, SEED):
        one = slice(step.row % n, step.row % n + 1)
        rows.append(({name: array[one] for name, array in step.feeds.items()}, step.prediction[one]))
    feeds = {name: np.concatenate([given[name] for given, _ in rows]) for name in rows[0][0]}
    return feeds, np.concatenate([prediction for _, prediction in rows])


def _trajectory(reference: Evaluate, manifest: Manifest, conditions: Mapping[str, Array]) -> Trajectory:
    plan, shape = short_plan(manifest), manifest.sample_shape
    batch = 2 if np.prod(shape) < LARGE else 1
    steering, weight = {name: array[:batch] for name, array in conditions.items()}, GUIDANCE[:batch]
    evaluate = guided_feeds(reference, manifest, weight) if manifest.guided else reference
    steps = list(teacher_forced(evaluate, manifest, plan, batch, steering, SEED))
    draw = noise_source(SEED, range(batch), shape)
    noise = None if plan.is_deterministic else np.stack([draw(row) for row in range(len(plan))])
    states = np.stack([*(step.feeds["x"] for step in steps), steps[-1].following])
    predictions = np.stack([step.prediction for step in steps])
    return Trajectory(plan, states[0], noise, predictions, states, steering, weight if manifest.guided else None)
