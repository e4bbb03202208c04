"""Correctness before timing: every contender has to agree with the float32 reference within its precision's budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.backends import open_backend
from ddpm_deploy.bench.record import Parity
from ddpm_deploy.bundle import Bundle, Manifest
from ddpm_deploy.errors import NonFiniteError, ParityError
from ddpm_deploy.job import example_conditions, kept_channels
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.parity.budget import Budget, budget_for
from ddpm_deploy.parity.measure import compare, max_abs, psnr_db
from ddpm_deploy.parity.next_state import (
    BEST_PSNR_DB,
    Evaluate,
    NextState,
    Step,
    picture_range,
    short_plan,
    teacher_forced,
)
from ddpm_deploy.plan import Denoise, Noise, Plan
from ddpm_deploy.sampler import Sampler

SEED = 0
TRAINED = "trained"
RANDOM_SLACK = 10  # a random network does not pull a trajectory back to pictures: rounding grows along it
SAMPLES = 2  # of a trajectory that is followed step by step
WORDS = {
    "prediction_relative_l2": "relative L2 of the output or of the clean image at most {:g}",
    "next_state_rms": "RMS error of a step at most {:g} of the picture's range",
    "next_state_max": "largest error of a step at most {:g} of it",
    "final_max_abs": "final max-abs at most {:g}",
    "final_psnr_db": "final PSNR at least {:g} dB",
}
PICTURES = ("final_max_abs", "final_psnr_db")

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Truth:
    """The float32 reference of a bundle. evaluate: its network. steps: of its default plan, from seed 0, `batch` each.

    source: what computed it. weights: see `record.Parity`.
    """

    manifest: Manifest
    evaluate: Evaluate
    steps: Sequence[Step]
    source: str
    weights: str

    def judge(self, candidate: Evaluate, batch: int, precision: str) -> Parity:
        """One evaluation on each of the reference's states, then the candidate's own samples, `batch` at once.

        Raises ParityError with what is over budget.
        """
        peak = picture_range(self.manifest)
        if batch > len(self.steps[0].state[0]):
            raise ValueError(f"batch: got {batch}, but the reference was recorded for {len(self.steps[0].state[0])}")
        errors = [step.errors(candidate, batch, peak) for step in self.steps]
        relative, clean, rms, largest = np.array(errors).T
        t = np.array([step.t for step in self.steps])
        final = self.steps[-1].following[:batch]
        samples = self._own_samples(candidate, batch)
        figures = (max_abs(samples, final), psnr_db(samples, final, peak)) if samples is not None else (np.inf, -np.inf)
        measured = NextState(t, relative, rms, largest, np.full(len(t), batch), *figures, len(t), clean)
        budget = self.budget(precision)
        _demand(measured.failures(budget))
        return Parity(measured.as_parity(), in_words(precision, budget), self.weights)

    def judge_samples(self, samples: Array, expected: Array, precision: str) -> Parity:
        """Final samples (B, *S) against the reference's from the same noise; raises ParityError."""
        if not np.isfinite(samples).all():
            raise ParityError("samples: got values that are not finite")
        decibels = min(psnr_db(samples, expected, picture_range(self.manifest)), BEST_PSNR_DB)
        figures = {"final_max_abs": max_abs(samples, expected), "final_psnr_db": decibels}
        budget = self.budget(precision)
        pictures = Budget(**{name: getattr(budget, name) for name in PICTURES})
        _demand(_samples_over(pictures, figures))
        return Parity(figures, in_words(precision, pictures), self.weights)

    def samples(self, plan: Plan, x_T: Array, noise: Noise = None) -> Array:
        """What the reference draws with a plan: (B, *S). x_T: (B, *S). noise: as in `Plan.run`."""
        return plan.run(self.denoiser(plan, example_conditions(self.manifest.conditions, len(x_T))), x_T, noise)

    def denoiser(self, plan: Plan, conditions: Mapping[str, Array]) -> Denoise:
        """The reference as a plan calls it. conditions: (B, ...) each."""
        channels = kept_channels(self.manifest, plan)
        return lambda x, t: self.evaluate({"x": x, "t": t, **conditions})[:, :channels]

    def budget(self, precision: str) -> Budget:
        """The bounds of a precision; on random weights that of the final samples is wider by `RANDOM_SLACK`."""
        budget = budget_for(precision)
        if self.weights == TRAINED or budget.final_max_abs is None:
            return budget
        return replace(budget, final_max_abs=RANDOM_SLACK * budget.final_max_abs)

    def _own_samples(self, candidate: Evaluate, batch: int) -> Array | None:
        conditions = example_conditions(self.manifest.conditions, batch)
        try:
            *_, last = teacher_forced(candidate, self.manifest, self.steps[0].plan, batch, conditions, SEED)
        except NonFiniteError:
            return None
        return last.following


def record_truth(bundle: Bundle, batch: int, *, weights: str, threads: int | None = None) -> Truth:
    """Evaluate the float32 reference: torch, or ONNX Runtime for a bundle without a torch network.

    batch: the largest that contenders will be judged at.
    """
    manifest = bundle.manifest
    backend = "torch" if manifest.network is not None else "onnxruntime"
    reference = open_backend(backend, bundle, threads=threads)
    (output,) = (spec.name for spec in reference.outputs)

    def evaluate(feeds: Mapping[str, Array]) -> Array:
        return reference.run(feeds)[output]

    conditions = example_conditions(manifest.conditions, batch)
    steps = list(teacher_forced(evaluate, manifest, short_plan(manifest), batch, conditions, SEED))
    return Truth(manifest, evaluate, steps, f"{backend} fp32", weights)


def follow(truth: Truth, sampler: Sampler, plan: Plan, precision: str) -> tuple[dict[str, Any], list[str]]:
    """A contender along a whole plan, see `parity.compare`, as plain numbers; and what of it is over budget."""
    x_T, noise = noise_for(truth.manifest, SAMPLES)
    conditions = example_conditions(truth.manifest.conditions, SAMPLES)
    reference, candidate = truth.denoiser(plan, conditions), sampler.denoiser(plan, conditions)
    peak = picture_range(truth.manifest)
    (measured,) = compare(reference, {precision: candidate}, plan, x_T, noise, peak=peak)
    return measured.to_dict(), truth.budget(precision).failures(measured)


def feeds_for(manifest: Manifest, batch: int) -> dict[str, Array]:
    """What one evaluation is timed on: noise of seed 0 at half time, and the example conditions."""
    t = np.full(batch, manifest.schedule.T // 2, np.float32)
    x = initial_noise(SEED, range(batch), manifest.sample_shape)
    return {"x": x, "t": t, **example_conditions(manifest.conditions, batch)}


def noise_for(manifest: Manifest, batch: int) -> tuple[Array, Any]:
    """x_T of seed 0, (batch, *S), and its noise as `Plan.run` takes it."""
    shape = manifest.sample_shape
    return initial_noise(SEED, range(batch), shape), noise_source(SEED, range(batch), shape)


def in_words(precision: str, budget: Budget) -> str:
    """The bounds that are judged, for a reader."""
    bounds = {name: getattr(budget, name) for name in WORDS}
    said = [WORDS[name].format(bound) for name, bound in bounds.items() if bound is not None]
    return f"{precision}: {', '.join(said)}"


def _samples_over(budget: Budget, figures: Mapping[str, float]) -> list[str]:
    found = []
    if budget.final_max_abs is not None and not figures["final_max_abs"] <= budget.final_max_abs:
        found.append(f"final error {figures['final_max_abs']:.2g} is over {budget.final_max_abs:g}")
    if budget.final_psnr_db is not None and not figures["final_psnr_db"] >= budget.final_psnr_db:
        found.append(f"final PSNR {figures['final_psnr_db']:.1f} dB is under {budget.final_psnr_db:g} dB")
    return found


def _demand(failures: Sequence[str]) -> None:
    if failures:
        raise ParityError(f"not timed, as it is not the same model: {'; '.join(failures)}")
