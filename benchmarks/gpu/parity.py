"""Correct before fast: single evaluations against float64, whole samplings against float32 from the same noise.

Samples of random weights that no clip holds leave the range of pictures. Their errors are judged over the range that
the reference's own samples have.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.models import network_of
from benchmarks.gpu.paths import Evaluate, OwnNoise, Path
from benchmarks.models import Model
from ddpm_deploy.bench.record import Parity
from ddpm_deploy.bench.truth import RANDOM_SLACK, SEED, in_words
from ddpm_deploy.errors import ParityError
from ddpm_deploy.parity.budget import Budget, budget_for
from ddpm_deploy.parity.measure import judged, max_abs, psnr_db
from ddpm_deploy.parity.next_state import BEST_PSNR_DB, Step, picture_range, teacher_forced
from ddpm_deploy.plan import Plan

CHECKED = 8  # samples of a batch that are computed in float64
BOUNDS = {  # our figures, by the names that budgets have for their bounds
    "judged_l2": "prediction_relative_l2",
    "next_state_rms": "next_state_rms",
    "next_state_max": "next_state_max",
    "final_max_abs": "final_max_abs",
    "final_psnr_db": "final_psnr_db",
}
OVER = "out of its parity budget, so not timed"

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Expected:
    """What a path is held against. steps: single ones in float64, if there are any. peak: range of `final`."""

    steps: tuple[Step, ...]
    final: Array
    peak: float


class Reference:
    """The model's own module in torch on the device, in float32 without TF32 and in float64."""

    def __init__(self, model: Model, device: str) -> None:
        self.manifest = model.bundle.manifest
        self._model, self._device = model, device
        self._known: dict[Any, Expected] = {}
        self._seconds: dict[int, float] = {}

    def predict(self, feeds: Mapping[str, Array]) -> Array:
        """One evaluation in float32."""
        return self._evaluate(self.network, feeds, np.float32)

    def predict64(self, feeds: Mapping[str, Array]) -> Array:
        """One evaluation in float64."""
        return self._evaluate(self._network64, feeds, np.float64)

    def seconds(self, batch: int) -> float:
        """Of one evaluation in float32, which is not its first."""
        if batch not in self._seconds:
            feeds = {"x": np.zeros((batch, *self.manifest.sample_shape), np.float32), "t": np.zeros(batch, np.float32)}
            self.predict(feeds)
            began = time.perf_counter()
            self.predict(feeds)
            self._seconds[batch] = time.perf_counter() - began
        return self._seconds[batch]

    def judge(self, path: Path, precision: str, batch: int) -> Parity:
        """A path's parity; ParityError with what is over the budget of its precision."""
        expected = self._expected(path, batch)
        figures = {**_step_errors(path, expected, batch), **_final_errors(path.draw(), expected)}
        budget = self._budget(precision, expected)
        failures = over_budget(figures, budget)
        if failures:
            raise ParityError(f"{OVER}: {'; '.join(failures)}")
        return Parity(figures, in_words(precision, budget), self._model.weights)

    @cached_property
    def network(self) -> Any:
        """In float32 on the device."""
        return network_of(self._model.bundle).to(self._device)

    @cached_property
    def _network64(self) -> Any:
        return copy.deepcopy(self.network).double()

    def _evaluate(self, network: Any, feeds: Mapping[str, Array], dtype: Any) -> Array:
        import torch

        from ddpm_deploy.backends.torch import tf32

        with tf32(False), torch.inference_mode():
            x, t = (torch.from_numpy(feeds[name].astype(dtype)).to(self._device) for name in ("x", "t"))
            prediction: Array = network(x, t).cpu().numpy()
        return prediction

    def _expected(self, path: Path, batch: int) -> Expected:
        key = (path.plan.to_json(), batch, path.noise and path.noise.name)
        if key not in self._known:
            self._known[key] = self._whole(path.plan, path.noise) if path.noise else self._followed(path.plan, batch)
        return self._known[key]

    def _followed(self, plan: Plan, batch: int) -> Expected:
        """A trajectory from the seed's noise; its first, middle and last step once more in float64."""
        wanted = {0, len(plan) // 2, len(plan) - 1}
        steps, final = [], np.empty(0)
        for step in teacher_forced(self.predict, self.manifest, plan, batch, {}, SEED):
            if step.row in wanted:
                steps.append(self._exactly(step))
            final = step.following
        return Expected(tuple(steps), final, self._peak(final))

    def _whole(self, plan: Plan, noise: OwnNoise) -> Expected:
        final = plan.run(lambda x, t: self.predict({"x": x, "t": t}), noise.x_T, noise.z)
        return Expected((), final, self._peak(final))

    def _exactly(self, step: Step) -> Step:
        """The first samples of a step as float64 has them, from the same state."""
        feeds = {name: array[:CHECKED] for name, array in step.feeds.items()}
        state = [image[:CHECKED].astype(np.float64) for image in step.state]
        z = None if step.z is None else step.z[:CHECKED]
        prediction = self.predict64(feeds)
        following, _ = step.plan.step(step.row, state, prediction, z)
        return replace(step, state=state, z=z, feeds=feeds, prediction=prediction, following=following[0])

    def _peak(self, final: Array) -> float:
        return max(picture_range(self.manifest), float(np.ptp(final)))

    def _budget(self, precision: str, expected: Expected) -> Budget:
        """The largest error of samples is an absolute one: wider for random weights, and by the samples' own range."""
        budget = budget_for(precision)
        if budget.final_max_abs is None:
            return budget
        scale = expected.peak / picture_range(self.manifest) * (1 if self._model.trained else RANDOM_SLACK)
        return replace(budget, final_max_abs=scale * budget.final_max_abs)


def over_budget(figures: Mapping[str, float], budget: Budget) -> list[str]:
    """Which of the figures miss their bounds, in words; a NaN misses every bound."""
    found = []
    for name in (name for name in BOUNDS if name in figures):
        figure, bound, least = figures[name], getattr(budget, BOUNDS[name]), name.endswith("_db")
        if bound is not None and not (figure >= bound if least else figure <= bound):
            found.append(f"{name} is {figure:.3g}, expected at {'least' if least else 'most'} {bound:g}")
    return found


def _step_errors(path: Path, expected: Expected, batch: int) -> dict[str, float]:
    """The worst of the single steps; nothing for a path that shows none."""
    if path.evaluate is None or not expected.steps:
        return {}
    candidate = _whole_batch(path.evaluate, batch)
    errors = [step.errors(candidate, len(step.prediction), expected.peak) for step in expected.steps]
    raw, clean, rms, largest = np.array(errors).T
    worst = {"relative_l2": raw, "judged_l2": judged(raw, clean), "next_state_rms": rms, "next_state_max": largest}
    return {name: float(each.max()) for name, each in worst.items()}


def _final_errors(samples: Array, expected: Expected) -> dict[str, float]:
    if not np.isfinite(samples).all():
        raise ParityError(f"{OVER}: its samples are not finite")
    decibels = min(psnr_db(samples, expected.final, expected.peak), BEST_PSNR_DB)
    return {"final_max_abs": max_abs(samples, expected.final), "final_psnr_db": decibels}


def _whole_batch(evaluate: Evaluate, batch: int) -> Evaluate:
    """The same for fewer samples, which are repeated up to the batch that the path was made for."""

    def call(feeds: Mapping[str, Array]) -> Array:
        n = len(feeds["x"])
        return evaluate({name: np.resize(array, (batch, *array.shape[1:])) for name, array in feeds.items()})[:n]

    return call
