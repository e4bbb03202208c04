"""Measuring agreement between denoisers, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.errors import NonFiniteError
from ddpm_deploy.plan import Denoise, Plan

Array = NDArray[Any]
LOST = (np.nan, np.nan, np.nan, np.nan)


def _no_points() -> Array:
    """No single evaluations."""
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Comparison:
    """One candidate against the reference over one plan; each figure is the worst of the batch.

    t: (N,). prediction_relative_l2: (N,) error of the raw output on the reference's own states (teacher-forced),
    over its norm. next_state_max_abs: (N,) what that error does to the next state, in network range.
    drift_max_abs: (N,) distance of the candidate's own trajectory (free-running). final_max_abs: of the samples.
    final_psnr_db: of the samples, the peak being `peak`; infinite where they are equal. From the row on where the
    candidate's output is not finite, its figures are NaN. points_relative_l2: (R,) as prediction_relative_l2, at single
    evaluations beside the plan; points_t: (R,) where. clean_relative_l2, points_clean_relative_l2: the same errors of
    the clean image, see `clean_error`; without them the raw output alone is judged.
    """

    name: str
    t: Array
    prediction_relative_l2: Array
    next_state_max_abs: Array
    drift_max_abs: Array
    final_max_abs: float
    final_psnr_db: float
    points_t: Array = field(default_factory=_no_points)
    points_relative_l2: Array = field(default_factory=_no_points)
    clean_relative_l2: Array = field(default_factory=_no_points)
    points_clean_relative_l2: Array = field(default_factory=_no_points)

    @property
    def worst_step(self) -> tuple[float, float]:
        """The largest error of one evaluation as it is judged, in the plan or at the points, and the t where it is."""
        along = judged(self.prediction_relative_l2, self.clean_relative_l2)
        errors = np.concatenate([along, judged(self.points_relative_l2, self.points_clean_relative_l2)])
        return float(errors.max()), float(np.concatenate([self.t, self.points_t])[errors.argmax()])

    def first_drift_over(self, budget: float) -> int | None:
        """The first row after which the free-running states differ by more than `budget`."""
        over = np.flatnonzero(self.drift_max_abs > budget)
        return int(over[0]) if over.size else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; what is not finite is null."""
        return {
            "name": self.name,
            "t": self.t.tolist(),
            "prediction_relative_l2": _plain(self.prediction_relative_l2),
            "next_state_max_abs": _plain(self.next_state_max_abs),
            "drift_max_abs": _plain(self.drift_max_abs),
            "final_max_abs": _plain(self.final_max_abs),
            "final_psnr_db": _plain(self.final_psnr_db),
            "clean_relative_l2": _plain(self.clean_relative_l2),
            "points_t": self.points_t.tolist(),
            "points_relative_l2": _plain(self.points_relative_l2),
        }


def compare(
    reference: Denoise,
    candidates: Mapping[str, Denoise],
    plan: Plan,
    x_T: Array,
    noise: ArrayLike | Callable[[int], Array] | None = None,
    *,
    peak: float = 2.0,
    on_row: Callable[[], object] = lambda: None,
) -> list[Comparison]:
    """Run the reference and every candidate side by side, row by row, from the same noise.

    x_T: (B, *S) float32. noise: as in `Plan.run`. peak: width of the samples' range, for the PSNR. on_row: called
    after each row, for a progress bar.
    """
    draw = plan.noise_source(noise, x_T)
    truth = plan.start(x_T)
    runs = [_Run(name, denoise, plan.start(x_T)) for name, denoise in candidates.items()]
    for i, t in enumerate(plan.t):
        t_batch = np.full(len(x_T), t, x_T.dtype)
        z = draw(i) if plan.draws_noise[i] else None
        m = reference(truth[0], t_batch)
        following, _ = plan.step(i, truth, m, z)
        for run in runs:
            run.advance(plan, i, t_batch, z, truth, m, following)
        truth = following
        on_row()
    return [run.result(plan.t, truth[0], peak) for run in runs]


def relative_l2(value: Array, truth: Array) -> float:
    """The largest `|value - truth| / |truth|` over the samples of a batch."""
    return float(np.max(relative_l2_each(value, truth)))


def relative_l2_each(value: Array, truth: Array) -> Array:
    """`|value - truth| / |truth|` of every sample: (B,)."""
    with np.errstate(invalid="ignore"):
        difference = np.linalg.norm(_flat(value) - _flat(truth), axis=1)
    error: Array = difference / np.maximum(np.linalg.norm(_flat(truth), axis=1), np.finfo(np.float32).tiny)
    return error


def clean_error(predict: Array | tuple[Array, Array], x: Array, value: Array, truth: Array) -> Array:
    """Relative L2 of the clean image `p_x x + p_m m` that an output means, for every sample: (B,).

    The cleaner x is, the finer are the differences that a network tells noise by: at noise sigma its output magnifies
    the rounding of x by up to 1 / sigma, in whatever order it sums. In the clean image that is gone. A learned variance
    is no part of that image; its error counts against the whole output. predict: (p_x, p_m), numbers or (B,) each.
    """
    channels, lift = x.shape[1], (slice(None), *[None] * (x.ndim - 1))
    p_x, p_m = (np.asarray(p, np.float64).reshape(-1)[lift] for p in predict)
    images = [p_x * x + p_m * output[:, :channels] for output in (value, truth)]
    rest = np.linalg.norm(_flat(value[:, channels:]) - _flat(truth[:, channels:]), axis=1)
    whole = np.maximum(np.linalg.norm(_flat(truth), axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.maximum(relative_l2_each(*images), rest / whole))


def judged(raw: Array, clean: Array) -> Array:
    """What a budget is held against: the error of the raw output, or of the clean image where that is less."""
    return np.minimum(raw, clean) if clean.size else raw


def max_abs(value: Array, truth: Array) -> float:
    """The largest absolute difference."""
    return float(np.max(np.abs(value.astype(np.float64) - truth)))


def psnr_db(value: Array, truth: Array, peak: float) -> float:
    """Peak signal-to-noise ratio of the worst sample, in dB."""
    mse = float(np.max(np.mean((_flat(value) - _flat(truth)) ** 2, axis=1)))
    return float(20 * np.log10(peak) - 10 * np.log10(mse)) if mse else float("inf")


def replay(predictions: Iterable[Array]) -> Denoise:
    """A denoiser that plays back recorded outputs, one a row."""
    recorded = iter(predictions)
    return lambda x, t: next(recorded)


class _Run:
    """One candidate on its way."""

    def __init__(self, name: str, denoise: Denoise, state: list[Array]) -> None:
        self.name, self.denoise, self.state = name, denoise, state
        self.errors: list[tuple[float, float, float, float]] = []
        self.lost = False

    def advance(
        self, plan: Plan, i: int, t: Array, z: Array | None, truth: list[Array], m: Array, following: list[Array]
    ) -> None:
        if self.lost:
            self.errors.append(LOST)
            return
        forced = self.denoise(truth[0], t)
        try:
            next_forced, _ = plan.step(i, truth, forced, z)
            self.state, _ = plan.step(i, self.state, self.denoise(self.state[0], t), z)
        except NonFiniteError:
            self.lost = True
            self.errors.append(LOST)
            return
        clean = float(clean_error(plan.predict[i], truth[0], forced, m).max())
        moved, drift = max_abs(next_forced[0], following[0]), max_abs(self.state[0], following[0])
        self.errors.append((relative_l2(forced, m), clean, moved, drift))

    def result(self, t: Array, samples: Array, peak: float) -> Comparison:
        step, clean, state, drift = np.array(self.errors).T
        final = np.full_like(samples, np.nan) if self.lost else self.state[0]
        ends = max_abs(final, samples), psnr_db(final, samples, peak)
        return Comparison(self.name, t, step, state, drift, *ends, clean_relative_l2=clean)


def _plain(figures: Array | float) -> Any:
    """Numbers as JSON has them."""
    numbers = np.asarray(figures, object)
    numbers[~np.isfinite(figures)] = None
    return numbers.tolist()


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1).astype(np.float64)
