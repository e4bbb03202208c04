"""The gate of every export: ONNX Runtime against torch, on the states of torch's own reverse chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.errors import ParityError
from ddpm_deploy.export.graph import Denoiser
from ddpm_deploy.job import kept_channels, plan_settings
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.parity.measure import max_abs, relative_l2
from ddpm_deploy.plan import Plan
from ddpm_deploy.reference import Reference, Trajectory
from ddpm_deploy.solvers import make_plan

BATCHES = (7, 2, 1)  # the first is the batch of the chain itself
SEED = 0
POINTS = 8  # evaluations kept in reference.npz
SHORT = 32  # rows of its trajectory at most
LARGE = 2**14  # elements; from here on the trajectory is of one sample

Array = NDArray[Any]
Evaluate = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Evaluation:
    """Inputs and output of one call of the float32 network."""

    feeds: Mapping[str, Array]
    prediction: Array


@dataclass
class Figures:
    """The largest errors met so far. relative_l2: as in `parity.measure`; t, batch: where it was met."""

    relative_l2: float = 0.0
    max_abs: float = 0.0
    t: float = 0.0
    batch: int = 0
    timesteps: int = 0
    kept: list[Evaluation] = field(default_factory=list)

    def add(self, expected: Array, got: Array, t: float) -> None:
        """Take in one comparison; an error that is no number counts as infinite."""
        with np.errstate(invalid="ignore", over="ignore"):
            relative, largest = _or_infinite(relative_l2(got, expected)), _or_infinite(max_abs(got, expected))
        if relative > self.relative_l2:
            self.relative_l2, self.t, self.batch = relative, t, len(expected)
        self.max_abs = max(self.max_abs, largest)

    def require(self, max_relative_error: float, what: str) -> None:
        """Raise ParityError where the budget is exceeded."""
        if self.relative_l2 > max_relative_error:
            raise ParityError(
                f"{what}: relative L2 error at t = {self.t:g}, batch {self.batch}: got {self.relative_l2:.3g}, "
                f"expected at most {max_relative_error:g}; nothing was written"
            )

    def as_parity(self) -> dict[str, float]:
        """The figures that go into the bundle."""
        return {"relative_l2": self.relative_l2, "max_abs": self.max_abs, "timesteps": float(self.timesteps)}


def torch_evaluate(network: Denoiser) -> Evaluate:
    """The float32 reference: the torch module itself."""

    def evaluate(feeds: Mapping[str, Array]) -> Array:
        with torch.inference_mode():
            out: Array = network(*(torch.from_numpy(np.ascontiguousarray(a)) for a in feeds.values())).numpy()
        return out

    return evaluate


def compare(
    reference: Evaluate,
    candidate: Evaluate,
    manifest: Manifest,
    conditions: Mapping[str, Array],
    timesteps: int,
    advance: Callable[[], object],
) -> Figures:
    """Run the model's own DDPM chain through `reference` and show `candidate` every state, at every batch size.

    conditions: (7, ...) each. timesteps: how many of the T, evenly spread. advance: called after each.
    """
    plan = make_plan("ddpm", manifest.schedule, timesteps, "linspace", manifest.prediction, manifest.clip,
                     variance=manifest.variance)  # fmt: skip
    figures = Figures(timesteps=timesteps)
    keep = set(np.linspace(0, len(plan) - 1, min(POINTS, len(plan))).round().astype(int).tolist())

    def observe(row: int, feeds: Mapping[str, Array], expected: Array) -> None:
        for batch in BATCHES:
            got = candidate({name: array[:batch] for name, array in feeds.items()})
            figures.add(expected[:batch], got, float(plan.t[row]))
        if row in keep:
            one = slice(row % BATCHES[0], row % BATCHES[0] + 1)
            figures.kept.append(Evaluation({n: a[one].copy() for n, a in feeds.items()}, expected[one].copy()))
        advance()

    run_chain(reference, manifest, plan, BATCHES[0], conditions, observe)
    return figures


def make_reference(reference: Evaluate, manifest: Manifest, points: Sequence[Evaluation],
                   conditions: Mapping[str, Array]) -> Reference:  # fmt: skip
    """What goes into reference.npz: the given evaluations, and a trajectory of the model's default solver."""
    feeds = {name: np.concatenate([point.feeds[name] for point in points]) for name in points[0].feeds}
    prediction = np.concatenate([point.prediction for point in points])
    x, t = feeds.pop("x"), feeds.pop("t")
    return Reference(x, t, prediction, _trajectory(reference, manifest, conditions), feeds)


def run_chain(
    reference: Evaluate,
    manifest: Manifest,
    plan: Plan,
    batch: int,
    conditions: Mapping[str, Array],
    observe: Callable[[int, Mapping[str, Array], Array], None],
) -> Array:
    """Run a plan; `observe` sees the row, the inputs and the raw output of every evaluation."""
    channels = kept_channels(manifest, plan)
    rows = iter(range(len(plan)))

    def denoise(x: Array, t: Array) -> Array:
        feeds = {"x": x, "t": t, **conditions}
        m = reference(feeds)
        observe(next(rows), feeds, m)
        return m[:, :channels]

    samples, shape = range(batch), manifest.sample_shape
    return plan.run(denoise, initial_noise(SEED, samples, shape), noise_source(SEED, samples, shape))


def _trajectory(reference: Evaluate, manifest: Manifest, conditions: Mapping[str, Array]) -> Trajectory:
    plan = _short_plan(manifest)
    shape = manifest.sample_shape
    batch = 2 if np.prod(shape) < LARGE else 1
    steering = {name: array[:batch] for name, array in conditions.items()}
    states, predictions = [], []

    def observe(row: int, feeds: Mapping[str, Array], prediction: Array) -> None:
        states.append(feeds["x"])
        predictions.append(prediction)

    final = run_chain(reference, manifest, plan, batch, steering, observe)
    draw = noise_source(SEED, range(batch), shape)
    noise = None if plan.is_deterministic else np.stack([draw(row) for row in range(len(plan))])
    return Trajectory(plan, states[0], noise, np.stack(predictions), np.stack([*states, final]), steering)


def _short_plan(manifest: Manifest) -> Plan:
    """The default solver, with fewer steps where the default has many."""
    steps = min(manifest.defaults.steps, SHORT // 2)  # some solvers evaluate twice a step
    return make_plan(schedule=manifest.schedule, **plan_settings(manifest, None, steps, None, None, {}))


def _or_infinite(figure: float) -> float:
    return figure if np.isfinite(figure) else float("inf")
