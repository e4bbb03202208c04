"""A plan with few evaluations for one model: its timesteps are chosen to match the model's own fine trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.encoder import PROMPT
from ddpm_deploy.grid import Grid
from ddpm_deploy.job import Conditions, example_conditions, plan_settings
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.schedule import Float
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.spacing import SPACINGS, make_timesteps
from ddpm_deploy.tuning.timesteps import best_path, fine_timesteps, refine, step_errors

SAMPLES = 128
SEED = 2**32  # far from those that people give, so that nothing is judged on what it was tuned with
BATCH_SIZE = 64
SEARCHED = "tuned"
MATCHED = "dpmpp_2m"  # of second order: on the fine grid its end is close to the exact one

Array = NDArray[Any]


@dataclass(frozen=True)
class TunedPlan:
    """What was chosen.

    errors: root mean square distance, in network range, of the samples from the ends of the fine trajectories: of the
    plan, of the path that costs least, and of each hand-made spacing with as many evaluations. spacing: the hand-made
    one that nothing found comes as near as, so that these are its timesteps; None where they were found.
    """

    plan: Plan
    timesteps: tuple[float, ...]
    errors: Mapping[str, float]
    spacing: str | None = None

    @property
    def best_spacing(self) -> str:
        """The hand-made spacing that comes nearest."""
        return min((name for name in self.errors if name in SPACINGS), key=lambda name: self.errors[name])


class Teacher:
    """The fine trajectories of a model, computed when first needed, and how far from their ends a plan's samples are.

    samples, seed: of the noise. guidance, condition: as in `tune_plan`; guidance_interval: as in `Sampler.sample`.
    tell: called after each call of the network.
    """

    def __init__(
        self,
        sampler: Sampler,
        samples: int = SAMPLES,
        seed: int = SEED,
        guidance: float = 1.0,
        condition: Conditions | None = None,
        tell: Callable[[], object] = lambda: None,
        guidance_interval: Sequence[float] | None = None,
    ) -> None:
        manifest = sampler.manifest
        if samples < 1:
            raise ValueError(f"samples: got {samples}, expected at least 1")
        self.sampler = sampler
        self.timesteps = fine_timesteps(manifest.schedule)
        self.grid = Grid.of(manifest.schedule, self.timesteps)
        self._x_T = initial_noise(seed, range(samples), manifest.sample_shape)
        given = _usual_conditions(sampler, samples) if condition is None else condition
        fine = plan_at(manifest, "ddim", self.timesteps)
        self._job = sampler.job(samples, fine, condition=given, guidance=guidance, guidance_interval=guidance_interval)
        self._guidance: dict[str, Any] = {"guidance": guidance, "guidance_interval": guidance_interval}
        self._tell = tell

    @cached_property
    def costs(self) -> Float:
        """The matrix of `timesteps.step_errors`."""
        job = self._job
        denoise = self.sampler.denoiser(job.plan, job.condition, job.guidance)
        states, guesses = [self._x_T], []
        for frame in job.plan.frames(denoise, self._x_T):
            states.append(frame.x)
            guesses.append(frame.x0)
            self._tell()
        return step_errors(self.grid, states, guesses)

    @cached_property
    def ends(self) -> Array:
        """What a plan is to come near to."""
        return self.draw(fine_plan(self.sampler.manifest))

    def distance(self, plan: Plan) -> float:
        """Of the plan's samples from the ends, root mean square."""
        return float(np.sqrt(np.mean((self.draw(plan) - self.ends) ** 2)))

    def draw(self, plan: Plan) -> Array:
        """The plan's samples from the noise of the trajectories."""
        self._tell()
        given = self._job.condition or None
        return self.sampler.sample(x_T=self._x_T, plan=plan, condition=given, batch_size=BATCH_SIZE, **self._guidance)

    def nearest_points(self, timesteps: Float) -> list[int]:
        """Points of the grid near to timesteps, from its first on and falling."""
        points = [0]
        for t in timesteps[1:]:
            points.append(max(points[-1] + 1, int(np.abs(self.timesteps - t).argmin())))
        return points


def plan_at(manifest: Manifest, solver: str, timesteps: Sequence[float] | Float, **options: Any) -> Plan:
    """A solver on given timesteps, for a model."""
    settings = plan_settings(manifest, solver, None, None, timesteps, options)
    return make_plan(schedule=manifest.schedule, **settings)


def fine_plan(manifest: Manifest) -> Plan:
    """The plan whose samples stand for the exact solution."""
    return plan_at(manifest, MATCHED, fine_timesteps(manifest.schedule))


def tune_plan(
    sampler: Sampler,
    nfe: int,
    solver: str | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    guidance: float = 1.0,
    condition: Conditions | None = None,
    tell: Callable[[], object] = lambda: None,
    **options: Any,
) -> TunedPlan:
    """Choose the timesteps of a deterministic plan with `nfe` evaluations.

    solver: None is the bundle's default. samples: how many trajectories are matched, under this guidance. condition:
    as in `Sampler.sample`, one for all or for each of them; None takes all classes in turn, but a model that reads text
    needs some. tell: called now and then. options: the solver's own.
    """
    defaults = sampler.manifest.defaults
    if solver is None:
        solver, options = defaults.solver, {**defaults.options, **options}
    return choose_timesteps(Teacher(sampler, samples, seed, guidance, condition, tell), nfe, solver, **options)


def choose_timesteps(teacher: Teacher, nfe: int, solver: str, **options: Any) -> TunedPlan:
    """The same with the trajectories of a teacher, which serve any solver and number of evaluations."""
    manifest = teacher.sampler.manifest
    steps = steps_for(teacher, solver, nfe, options)
    spaced = {name: make_timesteps(manifest.schedule, steps, name) for name in SPACINGS}

    def error(timesteps: Float) -> float:
        return teacher.distance(plan_at(manifest, solver, timesteps, **options))

    @cache
    def error_of(points: tuple[int, ...]) -> float:
        return error(teacher.timesteps[list(points)])

    def error_at(points: Sequence[int]) -> float:
        return error_of(tuple(points))

    path = best_path(teacher.costs, steps)
    errors = {"path of least cost": error_at(path)} | {name: error(spaced[name]) for name in SPACINGS}
    starts = [path, *(teacher.nearest_points(timesteps) for timesteps in spaced.values())]
    start = min((points for points in starts if points[-1] < len(teacher.timesteps)), key=error_at)
    chosen, least = refine(start, len(teacher.grid), error_at)
    nearest = min(spaced, key=lambda name: errors[name])
    spacing = nearest if errors[nearest] < least else None
    timesteps = teacher.timesteps[chosen] if spacing is None else spaced[spacing]
    plan = plan_at(manifest, solver, timesteps, **options)
    return TunedPlan(plan, tuple(timesteps.tolist()), {SEARCHED: least, **errors}, spacing)


def _usual_conditions(sampler: Sampler, samples: int) -> Conditions:
    if sampler.encoder is not None and sampler.encoder.tokenizer is not None:
        raise ValueError(f"{PROMPT}: the model draws by text; give some prompts like those that it will be asked for")
    return example_conditions(sampler.manifest.conditions, samples)


def steps_for(teacher: Teacher, solver: str, nfe: int, options: Mapping[str, Any]) -> int:
    """How many steps of a solver make `nfe` evaluations: as many, or about half for those that evaluate twice."""
    if nfe < 1 or nfe > len(teacher.timesteps):
        raise ValueError(f"nfe: got {nfe}, expected 1 to {len(teacher.timesteps)}, the points of the fine grid")
    for steps in (nfe, (nfe + 1) // 2):
        plan = plan_at(teacher.sampler.manifest, solver, teacher.timesteps[:steps], **options)
        if not plan.is_deterministic:
            raise ValueError(f"solver: {solver!r} draws noise, so it follows no trajectory; give a deterministic one")
        if plan.nfe == nfe:
            return steps
    raise ValueError(f"nfe: {solver!r} takes an odd number of evaluations, got {nfe}; give {nfe - 1} or {nfe + 1}")
