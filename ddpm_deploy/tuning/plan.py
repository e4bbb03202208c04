"""A plan with few evaluations for one model: its timesteps are chosen to match the model's own fine trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.grid import Grid
from ddpm_deploy.guidance import checked_guidance
from ddpm_deploy.job import example_conditions, plan_settings
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.schedule import Float
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.spacing import SPACINGS, make_timesteps
from ddpm_deploy.tuning.timesteps import best_path, fine_timesteps, refine, step_errors

SAMPLES = 64
SEED = 2**32  # far from those that people give, so that nothing is judged on what it was tuned with
MATCHED = "dpmpp_2m"  # of second order: on the fine grid its end is close to the exact one

Array = NDArray[Any]


@dataclass(frozen=True)
class TunedPlan:
    """What was chosen.

    errors: root mean square distance, in network range, of the samples from the ends of the fine trajectories: of the
    plan, of the path before it was refined, and of each hand-made spacing with as many evaluations.
    """

    plan: Plan
    timesteps: tuple[float, ...]
    errors: Mapping[str, float]

    @property
    def best_spacing(self) -> str:
        """The hand-made spacing that comes nearest."""
        return min((name for name in self.errors if name in SPACINGS), key=lambda name: self.errors[name])


class Teacher:
    """The fine trajectories of a model, and how far a plan's samples are from their ends."""

    def __init__(self, sampler: Sampler, samples: int = SAMPLES, seed: int = SEED, guidance: float = 1.0) -> None:
        manifest = sampler.manifest
        if samples < 1:
            raise ValueError(f"samples: got {samples}, expected at least 1")
        self._sampler = sampler
        self.timesteps = fine_timesteps(manifest.schedule)
        self.grid = Grid.of(manifest.schedule, self.timesteps)
        self._x_T = initial_noise(seed, range(samples), manifest.sample_shape)
        self._condition = example_conditions(manifest.conditions, samples)
        self._weight = guidance
        self._guidance = checked_guidance(guidance, None, manifest, bool(self._condition), samples)

    def errors(self, tell: Callable[[], object]) -> Float:
        """The matrix of `timesteps.step_errors`. tell: called after each evaluation."""
        plan = self.plan("ddim", self.timesteps)
        denoise = self._sampler.denoiser(plan, self._condition, self._guidance)
        states, guesses = [self._x_T], []
        for frame in plan.frames(denoise, self._x_T):
            states.append(frame.x)
            guesses.append(frame.x0)
            tell()
        self._ends = self.draw(self.plan(MATCHED, self.timesteps))
        return step_errors(self.grid, states, guesses)

    def distance(self, plan: Plan) -> float:
        """Of the plan's samples from the ends; after `errors`."""
        return float(np.sqrt(np.mean((self.draw(plan) - self._ends) ** 2)))

    def draw(self, plan: Plan) -> Array:
        """The plan's samples from the noise of the trajectories."""
        return self._sampler.sample(x_T=self._x_T, plan=plan, condition=self._condition, guidance=self._weight)

    def spaced(self, solver: str, steps: int, spacing: str, **options: Any) -> Plan:
        """A solver on a hand-made spacing, for this model."""
        timesteps = make_timesteps(self._sampler.manifest.schedule, steps, spacing)
        return self.plan(solver, timesteps, **options)

    def plan(self, solver: str, timesteps: Sequence[float] | Float, **options: Any) -> Plan:
        """A solver on given timesteps, for this model."""
        manifest = self._sampler.manifest
        settings = plan_settings(manifest, solver, None, None, timesteps, options)
        return make_plan(schedule=manifest.schedule, **settings)


def tune_plan(
    sampler: Sampler,
    nfe: int,
    solver: str | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    guidance: float = 1.0,
    tell: Callable[[], object] = lambda: None,
    **options: Any,
) -> TunedPlan:
    """Choose the timesteps of a deterministic plan with `nfe` evaluations.

    solver: None is the bundle's default. samples: how many trajectories are matched, of all classes where there are
    any, under this guidance. tell: called now and then. options: the solver's own.
    """
    defaults = sampler.manifest.defaults
    if solver is None:
        solver, options = defaults.solver, {**defaults.options, **options}
    teacher = Teacher(sampler, samples, seed, guidance)
    steps = steps_for(teacher, solver, nfe, options)
    path = best_path(teacher.errors(tell), steps)

    def compiled(points: Sequence[int]) -> Plan:
        return teacher.plan(solver, teacher.timesteps[list(points)], **options)

    def error(points: Sequence[int]) -> float:
        tell()
        return teacher.distance(compiled(points))

    chosen, least = refine(path, len(teacher.grid), error)
    plan = compiled(chosen)
    errors = {"tuned": least, "before refining": error(path)}
    for name in SPACINGS:
        errors[name] = teacher.distance(teacher.spaced(solver, steps, name, **options))
    return TunedPlan(plan, tuple(teacher.timesteps[chosen].tolist()), errors)


def steps_for(teacher: Teacher, solver: str, nfe: int, options: Mapping[str, Any]) -> int:
    """How many steps of a solver make `nfe` evaluations: as many, or about half for those that evaluate twice."""
    if nfe < 1 or nfe > len(teacher.timesteps):
        raise ValueError(f"nfe: got {nfe}, expected 1 to {len(teacher.timesteps)}, the points of the fine grid")
    for steps in (nfe, (nfe + 1) // 2):
        plan = teacher.spaced(solver, steps, "trailing", **options)
        if not plan.is_deterministic:
            raise ValueError(f"solver: {solver!r} draws noise, so it follows no trajectory; give a deterministic one")
        if plan.nfe == nfe:
            return steps
    raise ValueError(f"nfe: {solver!r} takes an odd number of evaluations, got {nfe}; give {nfe - 1} or {nfe + 1}")
