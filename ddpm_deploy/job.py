"""One request to a sampler, checked: how many samples, by which plan, from which noise and conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.backends.cuda import Draw, Loop
from ddpm_deploy.bundle import Condition, Manifest
from ddpm_deploy.bundle.records import MAX_ELEMENTS
from ddpm_deploy.guidance import Guidance
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.plan import Noise, Plan
from ddpm_deploy.plan.feeds import plan_tables

RESERVED = {"solver", "schedule", "steps", "spacing", "timesteps", "prediction"}  # of `make_plan`, not of a solver

Array = NDArray[Any]
Conditions = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class Job:
    """What is to be drawn. condition: one array (n, ...) for each name. guidance: None where it changes nothing."""

    plan: Plan
    n: int
    shape: tuple[int, ...]
    condition: Mapping[str, Array]
    guidance: Guidance | None = None


class Source:
    """Where the noise of a job comes from: the seed's streams, or what the caller gave."""

    def __init__(self, job: Job, seed: int, start: int, x_T: ArrayLike | None, noise: Noise) -> None:
        self._job, self._seed, self._start = job, seed, start
        self._x_T = None if x_T is None else np.asarray(x_T, np.float32)
        self._noise: Any = noise
        if noise is not None and not callable(noise):
            self._noise = _broadcast_noise(noise, (job.plan.nfe, job.n, *job.shape))

    def initial(self, chunk: slice) -> Array:
        """x_T of some of the samples."""
        if self._x_T is not None:
            return self._x_T[chunk]
        return initial_noise(self._seed, self._indices(chunk), self._job.shape)

    def noise(self, chunk: slice) -> Any:
        """z of some of the samples, as `Plan.run` takes it."""
        if self._noise is None:
            return noise_source(self._seed, self._indices(chunk), self._job.shape)
        return self._noise if callable(self._noise) else self._noise[:, chunk]

    def fits(self, loop: Loop) -> bool:
        """Whether a loop on the device can draw the job: its noise is the seed's, its state fits the graph."""
        size = loop.evaluator.state_size
        return self._noise is None and (size is None or len(self._job.plan.state) <= size)

    def draw(self, chunk: slice, loop: Loop) -> Draw:
        """Some of the samples as a loop on the device takes them."""
        job, runtime = self._job, loop.evaluator
        learned = job.plan.log_variance is not None or (runtime.fuses and runtime.learned)
        tables = plan_tables(job.plan, learned_variance=learned, state_size=runtime.state_size)
        guidance = None if job.guidance is None else job.guidance.part(chunk)
        if guidance is None and runtime.weighs:
            guidance = Guidance(np.ones(chunk.stop - chunk.start, np.float32))
        if guidance is not None:
            tables["guided"] = guidance.counts(job.plan.t).astype(np.float32)
        return Draw(
            tables=tables,
            draws=not job.plan.is_deterministic,
            seed=self._seed,
            samples=self._indices(chunk),
            shape=job.shape,
            x_T=None if self._x_T is None else self._x_T[chunk],
            condition={name: array[chunk] for name, array in job.condition.items()},
            guidance=None if guidance is None else guidance.weight,
        )

    def _indices(self, chunk: slice) -> range:
        return range(self._start + chunk.start, self._start + chunk.stop)


def kept_channels(manifest: Manifest, plan: Plan) -> int | None:
    """How many channels of the network's output the plan takes; None is all, fewer leave out a learned variance."""
    unused = manifest.variance == "learned" and plan.log_variance is None
    return manifest.sample_shape[0] if unused else None


def example_conditions(known: Sequence[Condition], n: int) -> dict[str, Array]:
    """Values to measure with where nobody asks for any: every class in turn, or Gaussian numbers; (n, ...) each.

    Where a condition has a null, the third sample of every eight has it.
    """
    return {condition.name: _example(condition, n) for condition in known}


def _example(condition: Condition, n: int) -> Array:
    shape = (n, *condition.shape)
    if np.issubdtype(condition.dtype, np.floating):
        example = initial_noise(0, range(n), condition.shape).astype(condition.dtype)
    else:
        example = (np.arange(math.prod(shape)) % len(condition.classes or [0])).reshape(shape).astype(condition.dtype)
    if condition.null is not None:
        example[2::8] = condition.null
    return example


def _broadcast_noise(noise: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = np.asarray(noise, np.float32)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"noise: got shape {array.shape}, expected one that broadcasts to {shape}") from None


def plan_settings(
    manifest: Manifest,
    solver: str | None,
    steps: int | None,
    spacing: str | None,
    timesteps: ArrayLike | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of `make_plan` for a model, apart from its schedule; what is not asked for is the model's default.

    A solver that is named without a number of steps takes the default number, but "ddpm" all T of them. Where neither
    solver, steps nor spacing is asked for, timesteps that were tuned for the model are taken.
    """
    defaults = manifest.defaults
    if timesteps is None and (solver, steps, spacing) == (None, None, None):
        timesteps = defaults.timesteps
    if steps is None and timesteps is None:
        steps = manifest.schedule.T if solver == "ddpm" else defaults.steps
    if solver is None:
        solver, options = defaults.solver, {**defaults.options, **options}
    if RESERVED & options.keys():
        raise ValueError(f"{min(RESERVED & options.keys())}: not an option of solver {solver!r}")
    model: dict[str, Any] = {"prediction": manifest.prediction, "clip": manifest.clip}
    if solver == "ddpm":
        model["variance"] = manifest.variance
    asked = {"solver": solver, "steps": steps, "spacing": spacing or defaults.spacing, "timesteps": timesteps}
    return {**asked, **model, **options}


def checked_shape(manifest: Manifest, size: Sequence[int] | None, x_T: ArrayLike | None) -> tuple[int, ...]:
    """The shape of one sample: the trained one, or one of another size where the graphs leave it free.

    size: (H, W). x_T: (n, *S).
    """
    given = () if x_T is None else np.shape(x_T)[1:]
    if size is not None:
        return _sized(manifest, "size", tuple(size))
    if manifest.size_multiple is not None and len(given) == 3:
        return _sized(manifest, "x_T", given[1:])
    return manifest.sample_shape


def _sized(manifest: Manifest, name: str, size: tuple[int, ...]) -> tuple[int, ...]:
    own, multiple, got = manifest.sample_shape, manifest.size_multiple, "x".join(map(str, size))
    if len(own) != 3 or len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: got {got}, expected height and width of pictures")
    if multiple is None and size != own[1:]:
        fixed = "x".join(map(str, own[1:]))
        raise ValueError(f"{name}: got {got}, but the graphs take {fixed} only; export the model with --free-size")
    if multiple is not None and any(s % multiple for s in size):
        raise ValueError(f"{name}: got {got}, expected multiples of {multiple}")
    if own[0] * math.prod(map(int, size)) > MAX_ELEMENTS:
        raise ValueError(f"{name}: got {got}, expected a sample of at most {MAX_ELEMENTS} numbers")
    return (own[0], *map(int, size))


def checked_count(n: int | None, x_T: ArrayLike | None, shape: tuple[int, ...]) -> int:
    """How many samples are meant, from n and x_T."""
    if x_T is None:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n: got {n!r}, expected a whole number of samples of at least 1, or x_T")
        return int(n)
    given = np.shape(x_T)
    if given[1:] != shape or not given[0]:
        raise ValueError(f"x_T: got shape {given}, expected (n, {', '.join(map(str, shape))})")
    if n not in (None, given[0]):
        raise ValueError(f"n: got {n} beside an x_T of {given[0]} samples")
    return int(given[0])


def checked_conditions(given: Conditions, known: Sequence[Condition], n: int) -> dict[str, Array]:
    """Each condition as one array (n, ...) of the dtype that the model declares; a missing one is its null."""
    names, nulls = [condition.name for condition in known], {each.name: each.null for each in known}
    if not given.keys() <= nulls.keys() or any(nulls[name] is None for name in nulls.keys() - given.keys()):
        raise ValueError(f"condition: got {', '.join(sorted(given)) or 'none'}, expected {', '.join(names) or 'none'}")
    return {
        each.name: _checked_condition(given[each.name], each, n)
        if each.name in given
        else np.full((n, *each.shape), each.null, each.dtype)
        for each in known
    }


def _checked_condition(value: ArrayLike, known: Condition, n: int) -> Array:
    array, full = np.asarray(value), (n, *known.shape)
    if not np.can_cast(array.dtype, known.dtype, "same_kind"):
        raise ValueError(f"condition {known.name!r}: got {array.dtype}, expected {known.dtype}")
    if array.shape not in (known.shape, full):
        raise ValueError(f"condition {known.name!r}: got shape {array.shape}, expected {full} or {known.shape}")
    if known.classes is not None:
        valid = (array >= 0) & (array < len(known.classes)) | (array == known.null)
        if not np.all(valid):
            none = "" if known.null is None else f", or {known.null} for none"
            raise ValueError(f"condition {known.name!r}: expected classes from 0 to {len(known.classes) - 1}{none}")
    return np.ascontiguousarray(np.broadcast_to(array, full), known.dtype)
