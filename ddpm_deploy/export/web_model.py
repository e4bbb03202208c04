"""What a page that draws by itself has to know: of the model, and of every plan that it offers, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Condition, Manifest
from ddpm_deploy.images import NETWORK_RANGE
from ddpm_deploy.job import plan_settings
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import plan_tables
from ddpm_deploy.solvers import SOLVERS, make_plan

DISTILLED = ("lcm", "consistency")  # for models that were trained for them


def describe(manifest: Manifest, steps: Sequence[int], max_n: int) -> dict[str, Any]:
    """What can be asked of the model. steps: the choices, as far as the model has them, beside its default."""
    label, tokenizer, defaults = label_condition(manifest), manifest.tokenizer, manifest.defaults
    prompt = None if tokenizer is None else {**tokenizer.to_dict(), "required": not manifest.guided}
    return {
        "name": manifest.model.name,
        "shape": list(manifest.sample_shape),
        "bounds": list(manifest.clip or NETWORK_RANGE),
        "labels": None if label is None else _label(label),
        "prompt": prompt,
        "guided": manifest.guided,
        "default": {"solver": defaults.solver, "steps": defaults.steps},
        "solvers": {name: _steps(manifest, name, steps) for name in _solvers(manifest)},
        "max_n": max_n,
        "conditions": [
            {"name": each.name, "shape": list(each.shape), "dtype": each.dtype, "null": each.null}
            for each in manifest.conditions
        ],
    }


def label_condition(manifest: Manifest) -> Condition | None:
    """The condition that names a class, where there is one."""
    known = [each for each in manifest.conditions if each.classes is not None and not each.shape]
    return known[0] if len(known) == 1 else None


def plans_json(manifest: Manifest, solver: str, steps: Sequence[int]) -> str:
    """The plans of a solver by their number of steps, each as its float32 tables, flat, in the shortest digits.

    That of the model's default solver and steps is its default plan, with all else that belongs to it.
    """
    learned = manifest.variance == "learned"
    plans = {str(count): _tables(_plan(manifest, solver, count), learned) for count in steps}
    return json.dumps(plans, separators=(",", ":"), allow_nan=False)


def _solvers(manifest: Manifest) -> list[str]:
    return [name for name in SOLVERS if name not in DISTILLED or name == manifest.defaults.solver]


def _steps(manifest: Manifest, solver: str, steps: Sequence[int]) -> list[int]:
    """The paper's own algorithm takes every step."""
    T = manifest.schedule.T
    more = {T} if solver == "ddpm" else set()
    return sorted({manifest.defaults.steps, *more, *(each for each in steps if each <= T)})


def _label(label: Condition) -> dict[str, Any]:
    classes, required = list(label.classes or ()), label.null is None
    return {"name": label.name, "dtype": label.dtype, "classes": classes, "required": required}


def _plan(manifest: Manifest, solver: str, steps: int) -> Plan:
    defaults = manifest.defaults
    own = (solver, steps) == (defaults.solver, defaults.steps)
    settings = plan_settings(manifest, None if own else solver, None if own else steps, None, None, {})
    return make_plan(schedule=manifest.schedule, **settings)


def _tables(plan: Plan, learned_variance: bool) -> dict[str, Any]:
    tables = plan_tables(plan, learned_variance=learned_variance)
    return {
        "state": len(plan.state),
        "draws_noise": [int(draws) for draws in plan.draws_noise],
        **{name: _flat(table) for name, table in tables.items()},
    }


def _flat(table: NDArray[np.float32]) -> list[float | int | None]:
    """An infinite bound is None."""
    return [_shortest(value) if np.isfinite(value) else None for value in table.ravel()]


def _shortest(value: np.float32) -> float | int:
    number = float(str(value))
    return int(number) if number.is_integer() else number
