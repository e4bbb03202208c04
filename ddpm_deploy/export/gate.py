"""The parity gate: every graph against the reference, judged by the budget of its precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import Manifest, ModelFile
from ddpm_deploy.export.emulate import emulate
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.export.nonfinite import first_nonfinite
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.record import GUIDANCE
from ddpm_deploy.export.weights import in_memory
from ddpm_deploy.guidance import guided_feeds
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sampler_feeds
from ddpm_deploy.parity.bound import bits_per_dim
from ddpm_deploy.parity.budget import Budget, budget_for
from ddpm_deploy.parity.measure import max_abs, psnr_db, relative_l2
from ddpm_deploy.parity.next_state import (
    BEST_PSNR_DB,
    Evaluate,
    NextState,
    Step,
    ddpm_plan,
    measure_file,
    picture_range,
    short_plan,
    teacher_forced,
)
from ddpm_deploy.plan.feeds import STATE_SIZE, plan_tables

SAMPLES = 2  # of a whole sampler graph
SEED = 0
BOUND_ROWS = 100
MAX_KEPT_BYTES = 2**28  # of the reference's predictions along one trajectory

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """What was measured of one file. measured_on: in words. curve, budget: over all timesteps, of a denoiser."""

    parity: Mapping[str, float]
    failures: tuple[str, ...]
    measured_on: str
    curve: NextState | None = None
    budget: Budget | None = None


class Recording:
    """A reference that keeps what it predicts, as long as that is not too much."""

    def __init__(self, reference: Evaluate) -> None:
        self.reference = reference
        self.predictions: list[Array] = []
        self.size_bytes = 0

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        prediction = self.reference(feeds)
        self.size_bytes += prediction.nbytes
        if self.size_bytes <= MAX_KEPT_BYTES:
            self.predictions.append(prediction)
        return prediction


class Replay:
    """A reference that predicts what was kept, in the same order."""

    def __init__(self, predictions: Sequence[Array]) -> None:
        self._rest = iter(predictions)

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        return next(self._rest)


class Gate:
    """Measures graphs against the reference. conditions: example values, as many as the largest batch."""

    def __init__(
        self, reference: Evaluate, manifest: Manifest, conditions: Mapping[str, Array], options: Options
    ) -> None:
        self.reference, self.manifest, self.conditions, self.options = reference, manifest, conditions, options
        self._predictions: dict[int | None, list[Array]] = {}

    def denoiser(self, model: onnx.ModelProto, file: ModelFile, advance: Callable[[], object]) -> Verdict:
        """Along trajectories, every evaluation at every batch size, and the samples of the default plan."""
        budget = self.budget(file.precision)
        with evaluator(model) as candidate:
            curve = self.measure(candidate, self.options.parity_timesteps, advance)
            if not np.isfinite(curve.rms).all():
                failures = [f"{failure}{self._culprit(model, curve)}" for failure in curve.failures(budget)]
                return Verdict(curve.as_parity(), tuple(failures), _measured_on(file.precision), curve, budget)
            excess = self._bits_excess(candidate)
        failures = [*curve.failures(budget), *_over("relative excess of bits/dim", excess, budget.bits_excess)]
        parity = {**curve.as_parity(), "bits_excess": excess}
        return Verdict(parity, tuple(failures), _measured_on(file.precision), curve, budget)

    def measure(
        self, candidate: Evaluate, timesteps: int | None, advance: Callable[[], object] = lambda: None
    ) -> NextState:
        """The figures of any evaluation; the reference is evaluated once for all, as its trajectory stays the same."""
        known, kept = self._predictions.get(timesteps), Recording(self.reference)
        reference: Evaluate = kept if known is None else Replay(known)
        figures = measure_file(candidate, reference, self.manifest, batches=self.options.batches,
                               timesteps=timesteps, conditions=self.conditions, advance=advance)  # fmt: skip
        if known is None and kept.size_bytes <= MAX_KEPT_BYTES:
            self._predictions[timesteps] = kept.predictions
        return figures

    def step(self, model: onnx.ModelProto, file: ModelFile) -> Verdict:
        """Each row of the default plan by the graph itself, from the reference's state."""
        peak = picture_range(self.manifest)
        steering = {name: array[:SAMPLES] for name, array in self.conditions.items()}
        weight = {"guidance": GUIDANCE} if self.manifest.guided else {}
        figures = []
        with _opened(model, file) as backend:
            for step in self._steps:
                got = backend.run({**_step_feeds(step, self._learned), **steering, **weight})
                error = (got["next_state"][:, 0].astype(np.float64) - step.following) / peak
                finite = float(got["finite"].min())
                figures.append((np.sqrt(np.mean(error**2)), np.abs(error).max(), finite))
        rms, largest, finite = np.array(figures).T
        budget = self.budget(file.precision)
        failures = _over("RMS error of the next state", rms.max(), budget.next_state_rms)
        bound = budget.next_state_max or budget.final_max_abs
        failures += _over("largest error of the next state", largest.max(), bound)
        failures += [] if finite.all() else ["a prediction was not finite"]
        parity = {"next_state_rms": float(rms.max()), "next_state_max": float(largest.max()), "rows": float(len(rms))}
        return Verdict(_finite(parity), tuple(failures), _measured_on(file.precision))

    def sampler(self, model: onnx.ModelProto, file: ModelFile, *, unrolled: bool) -> Verdict:
        """The samples of the default plan in one run, from the same noise."""
        plan, shape = short_plan(self.manifest), self.manifest.sample_shape
        steering = {name: array[:SAMPLES] for name, array in self.conditions.items()}
        noise = None if plan.is_deterministic else noise_source(SEED, range(SAMPLES), shape)
        x_T = initial_noise(SEED, range(SAMPLES), shape)
        weights = np.tile(GUIDANCE, (len(plan), 1))
        if unrolled:
            given = {} if noise is None else {"noise": np.stack([noise(row) for row in range(len(plan))])}
            given |= {"guidance": weights} if self.manifest.guided else {}
        else:
            given = sampler_feeds(file.inputs, plan, x_T, noise, weights if self.manifest.guided else 1.0)
        feeds = {"x_T": x_T, **given, **steering}
        with _opened(model, file) as backend:
            got = backend.run(feeds)["samples"]
        return self._judge_samples(got, self._clean, file)

    def encoder(
        self, model: onnx.ModelProto, file: ModelFile, feeds: Mapping[str, Array], truth: Mapping[str, Array]
    ) -> Verdict:
        """The conditions that it computes, at the fp32 budget."""
        with _opened(model, file) as backend:
            got = backend.run(feeds)
        error = max(relative_l2(got[name], truth[name]) for name in truth)
        failures = _over("relative error of the condition", error, self.options.max_relative_error)
        parity = _finite({"relative_l2": error, "max_abs": max(max_abs(got[name], truth[name]) for name in truth)})
        return Verdict(parity, tuple(failures), _measured_on("fp32"))

    def budget(self, precision: str) -> Budget:
        """The precision's own budget, changed by the options."""
        changes: Any = dict(self.options.budgets.get(precision, {}))
        if precision == "fp32":
            changes["prediction_relative_l2"] = self.options.max_relative_error
        return replace(budget_for(precision), **changes)

    @cached_property
    def _reference_bits(self) -> float:
        return self._bits(self.reference)

    @cached_property
    def _clean(self) -> Array:
        """Samples of the reference, which stand for data."""
        return self._steps[-1].following

    @cached_property
    def _steps(self) -> list[Step]:
        """The reference's trajectory that `step` and `sampler` graphs are held against."""
        plan, reference = short_plan(self.manifest), self.reference
        if self.manifest.guided:
            reference = guided_feeds(reference, self.manifest, GUIDANCE)
        return list(teacher_forced(reference, self.manifest, plan, SAMPLES, self.conditions, SEED))

    def _bits_excess(self, candidate: Evaluate) -> float:
        """By what part of the reference's bound the candidate's is above it; 0 where there is none, as for one step."""
        return self._bits(candidate) / self._reference_bits - 1 if self._reference_bits else 0.0

    def _bits(self, who: Evaluate) -> float:
        steering = {name: array[:SAMPLES] for name, array in self.conditions.items()}
        rows = min(self.options.parity_timesteps or BOUND_ROWS, BOUND_ROWS)
        return bits_per_dim(who, self.manifest, self._clean, steering, rows)

    @property
    def _learned(self) -> bool:
        return self.manifest.variance == "learned"

    def _judge_samples(self, got: Array, truth: Array, file: ModelFile) -> Verdict:
        if not np.isfinite(got).all():
            return Verdict({}, ("the samples are not finite",), _measured_on(file.precision))
        budget, largest = self.budget(file.precision), max_abs(got, truth)
        psnr = min(psnr_db(got, truth, picture_range(self.manifest)), BEST_PSNR_DB)
        failures = _over("final error", largest, budget.final_max_abs)
        if budget.final_psnr_db is not None and not psnr >= budget.final_psnr_db:
            failures.append(f"final PSNR {psnr:.1f} dB is under {budget.final_psnr_db:g} dB")
        return Verdict({"final_max_abs": largest, "final_psnr_db": psnr}, tuple(failures), _measured_on(file.precision))

    def _culprit(self, model: onnx.ModelProto, curve: NextState) -> str:
        """In words the first node that makes a number that is none, at the very step where one came out first."""
        plans = (short_plan(self.manifest), ddpm_plan(self.manifest, self.options.parity_timesteps))
        n, row = max(self.options.batches), int(np.argmin(np.isfinite(curve.rms)))
        steps = chain.from_iterable(
            teacher_forced(self.reference, self.manifest, plan, n, self.conditions) for plan in plans
        )
        found = first_nonfinite(model, next(islice(steps, row, None)).feeds)
        return f"; first at node {found}" if found else ""


@contextmanager
def _opened(model: onnx.ModelProto, file: ModelFile) -> Iterator[OnnxRuntimeBackend]:
    data, weights = in_memory(model)
    with OnnxRuntimeBackend.from_bytes(data, file.inputs, file.outputs, weights=weights) as backend:
        yield backend


def _step_feeds(step: Step, learned: bool) -> dict[str, Array]:
    """The feeds of a `step` graph for one row."""
    n = len(step.following)
    tables = plan_tables(step.plan, learned_variance=learned, state_size=STATE_SIZE)
    rows = {name: np.repeat(table[step.row : step.row + 1], n, axis=0) for name, table in tables.items()}
    idle = [step.state[0]] * (STATE_SIZE - len(step.state))
    z = np.zeros_like(step.state[0]) if step.z is None else step.z
    return {**rows, "state": np.stack([*step.state, *idle], axis=1), "noise": z}


def _over(what: str, figure: float, bound: float | None) -> list[str]:
    return [] if bound is None or figure <= bound else [f"{what} {figure:.2g} is over {bound:g}"]


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Those that a bundle can hold."""
    return {name: figure for name, figure in figures.items() if np.isfinite(figure)}


def _measured_on(precision: str) -> str:
    how = ", its rounding emulated in float32" if precision in ("fp16", "bf16") else ""
    return f"ONNX Runtime {onnxruntime.__version__} on a CPU{how}"


def reducible(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The denoiser to build other graphs around for measuring: fp16 and bf16 are emulated."""
    return emulate(model) if precision in ("fp16", "bf16") else model


def worst(verdicts: Sequence[tuple[ModelFile, Verdict]]) -> list[str]:
    """Every failure, with the file's name."""
    return [f"{file.path}: {failure}" for file, verdict in verdicts for failure in verdict.failures]
