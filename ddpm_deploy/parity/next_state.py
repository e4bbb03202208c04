"""How far one step of a runtime leads from the reference: the error of the next state, in picture units.

Every evaluation gets the reference's own state (teacher-forced), and the solver's row is applied to both outputs. What
counts is the distance of the two next states over the width of the picture's range, so 1/255 is one grey level. The
relative error of the raw output would mislead: near t = 0 that output is small and hardly moves the picture any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.errors import NonFiniteError
from ddpm_deploy.job import example_conditions, kept_channels, plan_settings
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.parity.budget import Budget
from ddpm_deploy.parity.measure import clean_error, judged, max_abs, psnr_db, relative_l2
from ddpm_deploy.parity.report import pyplot
from ddpm_deploy.plan import Plan
from ddpm_deploy.solvers import make_plan

BATCHES = (7, 2, 1)
SEED = 0
MOST_STEPS = 16  # some solvers evaluate twice a step
RANGE = 2.0  # of samples that are not clipped: [-1, 1]
BEST_PSNR_DB = 200.0  # stands for equal samples: JSON has no infinity

Array = NDArray[Any]
Evaluate = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class Step:
    """One row of a reference trajectory. feeds, prediction: of the network. following: S[0] of the next state."""

    plan: Plan
    row: int
    state: Sequence[Array]
    z: Array | None
    feeds: Mapping[str, Array]
    prediction: Array
    following: Array

    @property
    def t(self) -> float:
        """Where the network is evaluated."""
        return float(self.plan.t[self.row])

    def errors(self, candidate: Evaluate, batch: int, peak: float) -> tuple[float, float, float, float]:
        """Relative L2 of the output and of the clean image, RMS and maximum of the next state over `peak`.

        Each is of the worst of `batch` samples, and infinite where the output is not finite.
        """
        got = candidate({name: array[:batch] for name, array in self.feeds.items()})
        if not np.isfinite(got).all():
            return (np.inf, np.inf, np.inf, np.inf)
        following = self._next(got, batch)
        difference = (following.astype(np.float64) - self.following[:batch]).reshape(batch, -1) / peak
        rms = np.sqrt(np.mean(difference**2, axis=1)).max()
        truth = self.prediction[:batch]
        clean = clean_error(self.plan.predict[self.row], self.state[0][:batch], got, truth)
        return relative_l2(got, truth), float(clean.max()), float(rms), float(np.abs(difference).max())

    def _next(self, prediction: Array, batch: int) -> Array:
        kept = prediction[:, : self._channels]
        z = None if self.z is None else self.z[:batch]
        state, _ = self.plan.step(self.row, [image[:batch] for image in self.state], kept, z)
        return state[0]

    @property
    def _channels(self) -> int:
        doubled = self.plan.log_variance is not None
        return int(self.state[0].shape[1]) * (2 if doubled else 1)


@dataclass(frozen=True, eq=False)
class NextState:
    """What was measured; each figure is the worst of the samples and batch sizes.

    t: (N,) of all rows, first the default solver's `solver_rows`, then those of the DDPM chain.
    relative_l2: (N,) of the raw output. rms, max_abs: (N,) of the next state, over the range. batch: (N,) the batch
    size of the largest rms. final_max_abs (in network range), final_psnr_db: of the samples of the default solver, run
    freely. clean_relative_l2: (N,) of the clean image, see `clean_error`; none is to judge the raw output alone.
    """

    t: Array
    relative_l2: Array
    rms: Array
    max_abs: Array
    batch: Array
    final_max_abs: float
    final_psnr_db: float
    solver_rows: int = 0
    clean_relative_l2: Array = field(default_factory=lambda: np.empty(0))

    @property
    def judged_l2(self) -> Array:
        """(N,) what the budget of an evaluation is held against."""
        return judged(self.relative_l2, self.clean_relative_l2)

    def failures(self, budget: Budget) -> list[str]:
        """What is over budget, in words; empty when all is well."""
        bounds = (
            ("relative error of one evaluation", self.judged_l2, budget.prediction_relative_l2),
            ("RMS error of the next state", self.rms, budget.next_state_rms),
            ("largest error of the next state", self.max_abs, budget.next_state_max),
        )
        if not np.isfinite(self.rms).all():
            row = int(np.argmin(np.isfinite(self.rms)))
            return [f"the output is not finite at t = {self.t[row]:g}, batch {self.batch[row]}"]
        found = [self._over(what, errors, bound) for what, errors, bound in bounds if bound is not None]
        if budget.final_max_abs is not None and not self.final_max_abs <= budget.final_max_abs:
            found.append(f"final error {self.final_max_abs:.2g} is over {budget.final_max_abs:g}")
        if budget.final_psnr_db is not None and not self.final_psnr_db >= budget.final_psnr_db:
            found.append(f"final PSNR {self.final_psnr_db:.1f} dB is under {budget.final_psnr_db:g} dB")
        return [text for text in found if text]

    def excess(self, budget: Budget) -> float:
        """The largest error over its bound: at most 1 within budget. The PSNR counts as the error that it stands for.

        Gives one number to those who search for a graph within budget.
        """
        pairs = (
            (self.judged_l2.max(), budget.prediction_relative_l2),
            (self.rms.max(), budget.next_state_rms),
            (self.max_abs.max(), budget.next_state_max),
            (self.final_max_abs, budget.final_max_abs),
        )
        ratios = [float(error) / bound for error, bound in pairs if bound is not None]
        if budget.final_psnr_db is not None:
            ratios.append(10 ** ((budget.final_psnr_db - self.final_psnr_db) / 20))
        return max(ratios, default=0.0)

    def as_parity(self) -> dict[str, float]:
        """The figures that go into a bundle; those that are not finite are left out."""
        figures = {
            "relative_l2": float(self.relative_l2.max()),
            "next_state_rms": float(self.rms.max()),
            "next_state_max": float(self.max_abs.max()),
            "final_max_abs": self.final_max_abs,
            "final_psnr_db": min(self.final_psnr_db, BEST_PSNR_DB),
            "timesteps": float(len(self.t)),
        }
        return {name: figure for name, figure in figures.items() if np.isfinite(figure)}

    def _over(self, what: str, errors: Array, bound: float) -> str | None:
        row = int(errors.argmax())
        if errors[row] <= bound:
            return None
        return f"{what} {errors[row]:.2g} at t = {self.t[row]:g}, batch {self.batch[row]}, is over {bound:g}"


def measure_file(
    candidate: Evaluate,
    reference: Evaluate,
    manifest: Manifest,
    *,
    batches: Sequence[int] = BATCHES,
    timesteps: int | None = None,
    conditions: Mapping[str, Array] | None = None,
    seed: int = SEED,
    advance: Callable[[], object] = lambda: None,
) -> NextState:
    """Measure along the default solver's trajectory and along a DDPM chain, then compare the solver's samples.

    batches: sizes to evaluate each state at, such as a profile's minimum, optimum and maximum and an odd one.
    timesteps: rows of the DDPM chain, None for all T; at least as many as the solver has, for in fewer rows a step
    would be longer than any that is sampled with. conditions: (max(batches), ...) each. advance: called after each row.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"batches: got {tuple(batches)}, expected numbers of at least 1")
    if conditions is None:
        conditions = example_conditions(manifest.conditions, max(batches))
    default = short_plan(manifest)
    peak = picture_range(manifest)
    rows, final = [], np.empty(0)
    for plan in (default, ddpm_plan(manifest, timesteps)):
        for step in teacher_forced(reference, manifest, plan, max(batches), conditions, seed):
            rows.append((step.t, *_worst(step, candidate, batches, peak)))
            if plan is default:
                final = step.following
            advance()
    t, relative, clean, rms, largest, batch = np.array(rows).T
    samples = _samples(candidate, manifest, default, final, conditions, seed)
    figures = (max_abs(samples, final), psnr_db(samples, final, peak)) if samples is not None else (np.inf, -np.inf)
    return NextState(t, relative, rms, largest, batch.astype(int), *figures, len(default), clean)


def teacher_forced(
    reference: Evaluate, manifest: Manifest, plan: Plan, n: int, conditions: Mapping[str, Array], seed: int = SEED
) -> Iterator[Step]:
    """The steps of n reference trajectories, one row at a time. conditions: (n, ...) each, or more."""
    samples, shape = range(n), manifest.sample_shape
    draw, channels = noise_source(seed, samples, shape), kept_channels(manifest, plan)
    steering = {name: array[:n] for name, array in conditions.items()}
    state = plan.start(initial_noise(seed, samples, shape))
    for row, t in enumerate(plan.t):
        feeds = {"x": state[0], "t": np.full(n, t, np.float32), **steering}
        prediction = reference(feeds)
        z = draw(row) if plan.draws_noise[row] else None
        following, _ = plan.step(row, state, prediction[:, :channels], z)
        yield Step(plan, row, state, z, feeds, prediction, following[0])
        state = following


def default_plan(manifest: Manifest) -> Plan:
    """The model's default solver with its default steps."""
    return make_plan(schedule=manifest.schedule, **plan_settings(manifest, None, None, None, None, {}))


def short_plan(manifest: Manifest) -> Plan:
    """The model's default solver with its default steps, but at most `MOST_STEPS`: to measure with, and to record."""
    steps = None if manifest.defaults.steps <= MOST_STEPS else MOST_STEPS
    return make_plan(schedule=manifest.schedule, **plan_settings(manifest, None, steps, None, None, {}))


def ddpm_plan(manifest: Manifest, timesteps: int | None) -> Plan:
    """The model's own DDPM chain in so many rows, evenly spread over all T, but not fewer than `short_plan`'s steps."""
    T = manifest.schedule.T
    rows = T if timesteps is None else min(T, max(timesteps, min(manifest.defaults.steps, MOST_STEPS)))
    return make_plan("ddpm", manifest.schedule, rows, "linspace", manifest.prediction, manifest.clip,
                     variance=manifest.variance)  # fmt: skip


def picture_range(manifest: Manifest) -> float:
    """Peak to peak of the samples, in network range."""
    return RANGE if manifest.clip is None else manifest.clip[1] - manifest.clip[0]


def mean_error(steps: Sequence[Step], candidate: Evaluate, peak: float) -> float:
    """The RMS error of the next state, averaged over steps: a cheap figure to rank candidates by."""
    return float(np.mean([step.errors(candidate, len(step.following), peak)[2] for step in steps]))


def plot(measured: Mapping[str, NextState], budgets: Mapping[str, Budget], path: Path, title: str) -> None:
    """Error of the next state over t, RMS and largest. Needs matplotlib.

    A line for the DDPM chain of each file, dots for the default solver, whose steps are longer. budgets: by the same
    names as `measured`; drawn across. Files with the same budget, so of the same precision, share a colour.
    """
    plots = pyplot()
    figure, panels = plots.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharex=True, sharey=True)
    kinds = list(dict.fromkeys(budgets[name] for name in measured))
    dashes = ["-", "--", ":", "-."]
    for name, figures in measured.items():
        budget = budgets[name]
        colour = f"C{kinds.index(budget)}"
        siblings = [other for other in measured if budgets[other] == budget]
        dash = dashes[siblings.index(name) % len(dashes)]
        for axes, errors, bound in zip(
            panels, (figures.rms, figures.max_abs), (budget.next_state_rms, budget.next_state_max), strict=True
        ):
            visible, own = np.where(errors > 0, errors, np.nan), slice(figures.solver_rows)
            chain = slice(figures.solver_rows, None)
            axes.semilogy(figures.t[chain], visible[chain], lw=1.2, ls=dash, color=colour, label=name)
            axes.semilogy(figures.t[own], visible[own], ".", color=colour)
            if bound is not None:
                axes.axhline(bound, color=colour, alpha=0.5, lw=0.9)
    for axes, what in zip(panels, ("RMS", "largest"), strict=True):
        axes.set(title=f"Next state, {what} error", xlabel="t", ylabel="fraction of the picture's range")
        axes.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plots.close(figure)


def _worst(step: Step, candidate: Evaluate, batches: Sequence[int], peak: float) -> tuple[float, ...]:
    errors = {batch: step.errors(candidate, batch, peak) for batch in batches}
    worst = (max(column) for column in zip(*errors.values(), strict=True))
    return (*worst, max(errors, key=lambda batch: errors[batch][2]))


def _samples(
    candidate: Evaluate, manifest: Manifest, plan: Plan, like: Array, conditions: Mapping[str, Array], seed: int
) -> Array | None:
    """The candidate's own samples, from the same noise; None where its output is not finite."""
    try:
        *_, last = teacher_forced(candidate, manifest, plan, len(like), conditions, seed)
    except NonFiniteError:
        return None
    return last.following
