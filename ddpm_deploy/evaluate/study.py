"""The solver study: every solver, spacing and number of evaluations against the full chain, on the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Defaults
from ddpm_deploy.evaluate.figures import Judge
from ddpm_deploy.evaluate.measure import Request, Tell, draw
from ddpm_deploy.evaluate.pareto import Trial
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.solvers import SOLVERS as KNOWN
from ddpm_deploy.spacing import SPACINGS
from ddpm_deploy.tuning.plan import SAMPLES, Teacher, choose_timesteps

TUNED, FULL = "tuned", "all"
MOST_TUNED = 16  # evaluations; beyond them spacings hardly differ
SOLVERS = ("ddim", "dpmpp_2m", "unipc", "ddpm")
CHOSEN_SPACINGS = ("trailing", "quadratic", "logsnr", TUNED)
NFES = (4, 5, 6, 8, 10, 12, 20, 50)

Array = NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """A plan that is to be tried."""

    solver: str
    spacing: str
    plan: Plan
    steps: int
    timesteps: tuple[float, ...] | None = None


def entries(
    sampler: Sampler,
    solvers: Sequence[str],
    spacings: Sequence[str],
    nfes: Sequence[int],
    state: State,
    request: Request,
    tell: Callable[[], object] = lambda: None,
) -> Iterator[Entry]:
    """The full chain, then all that there are; a combination that does not exist, such as a tuned DDPM, is left out.

    request: whose guidance and first conditions the tuned plans are for.
    """
    T = sampler.manifest.schedule.T
    yield Entry("ddpm", FULL, sampler.plan("ddpm", T, "linspace"), T)
    count = min(SAMPLES, request.n)
    conditions = {name: array[:count] for name, array in request.conditions.items()}
    teacher = Teacher(sampler, count, condition=conditions, tell=tell, **request.guided)
    for solver in solvers:
        for nfe in sorted({min(nfe, T) for nfe in nfes}):
            tune = partial(_tuned, teacher, solver, nfe, state)
            for spacing in spacings:
                found = _entry(sampler, solver, spacing, nfe, tune)
                if found is not None:
                    yield found


def _entry(
    sampler: Sampler, solver: str, spacing: str, nfe: int, tune: Callable[[], tuple[float, ...]]
) -> Entry | None:
    for steps in (nfe, (nfe + 1) // 2):
        plan = sampler.plan(solver, steps, "trailing" if spacing == TUNED else spacing)
        if plan.nfe == nfe:
            break
    else:
        return None
    if spacing != TUNED:
        return Entry(solver, spacing, plan, steps)
    if nfe > MOST_TUNED or not plan.is_deterministic:
        return None
    timesteps = tune()
    return Entry(solver, spacing, plan_at(sampler, solver, timesteps), steps, timesteps)


def _tuned(teacher: Teacher, solver: str, nfe: int, state: State) -> tuple[float, ...]:
    """The timesteps of a tuned plan, which the state keeps."""
    name = f"tuned {solver} {nfe}"
    kept = state.load(name)
    if kept is None:
        kept = {"timesteps": np.array(choose_timesteps(teacher, nfe, solver).timesteps)}
        state.save(name, kept, last=True)
    return tuple(kept["timesteps"].tolist())


def plan_at(sampler: Sampler, solver: str, timesteps: Sequence[float]) -> Plan:
    """A solver on given timesteps."""
    return sampler.plan(solver, timesteps=tuple(timesteps))


def run_trials(
    sampler: Sampler, tried: Iterable[Entry], judge: Judge, request: Request, state: State, tell: Tell
) -> Iterator[Trial]:
    """Draw, judge and time plans; the first is the full chain, which the others are compared with."""
    backend = sampler.backend
    runtime = f"{backend.name} {backend.precision} {backend.device}"
    full: Array | None = None
    for entry in tried:
        name = f"study {runtime} {entry.solver} {entry.spacing} {entry.plan.nfe}"
        samples, seconds = draw(sampler, entry.plan, request, name, state, tell)
        found = judge.features.of(samples)
        full = found if full is None else full
        timed = seconds[1:] if len(seconds) > 1 else seconds  # the first batch warms up
        yield Trial(
            entry.solver, entry.spacing, entry.plan.nfe, entry.steps, *judge.distance(found),
            float(np.median(timed)), entry.timesteps, judge.difference_error(found, full),
        )  # fmt: skip


def as_defaults(trial: Trial, own: Defaults) -> Defaults:
    """A trial as what a bundle draws with by default."""
    spacing = trial.spacing if trial.spacing in SPACINGS else own.spacing if trial.spacing == TUNED else "linspace"
    return Defaults(trial.solver, trial.steps, spacing, {}, trial.timesteps)


def check_lists(solvers: Sequence[str], spacings: Sequence[str], nfes: Sequence[int]) -> None:
    """Refuse what there is not, before anything is drawn."""
    for flag, given, there in (("--solvers", solvers, tuple(KNOWN)), ("--spacings", spacings, (*SPACINGS, TUNED))):
        unknown = [name for name in given if name not in there]
        if unknown:
            raise ValueError(f"{flag}: got {unknown[0]!r}, expected some of {', '.join(there)}")
    if min(nfes) < 1:
        raise ValueError(f"--nfes: got {list(nfes)}, expected whole numbers of at least 1")
