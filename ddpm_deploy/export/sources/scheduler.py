"""From diffusers' scheduler_config.json to schedule, prediction, variance, clip and default solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_deploy.bundle import Defaults
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.scheduler_table import (
    DEFAULTS,
    FIELDS,
    PREDICTION_TYPES,
    RETIRED,
    SCHEDULERS,
    SDE,
    VARIANCE_TYPES,
    Field,
    Scheduler,
)
from ddpm_deploy.schedule import Float, NoiseSchedule

MAX_TIMESTEPS = 10**6
MAX_NUMBER = 1e6
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
DATA_SOLVERS = ("dpmpp_1", "dpmpp_2m", "dpmpp_3m")


@dataclass(frozen=True)
class Translation:
    """What a scheduler's configuration says. flow: the network sees `T * sigma` as its time, not the index t."""

    schedule: NoiseSchedule
    prediction: str
    variance: str
    clip: tuple[float, float] | None
    defaults: Defaults
    flow: bool


def read_scheduler(config: Mapping[str, Any]) -> Translation:
    """Translate a scheduler_config.json field by field, as docs/diffusers.md says; ExportError names what cannot be."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ExportError(f"_class_name: got {name!r}, expected one of {', '.join(SCHEDULERS)}")
    entry = SCHEDULERS[name]
    values = _checked(config, name, entry)
    try:
        return _translate(values, name, entry)
    except (ValueError, TypeError) as error:
        raise ExportError(f"{name}: {error}") from None


def _checked(config: Mapping[str, Any], name: str, entry: Scheduler) -> dict[str, Any]:
    """The fields that matter, with the defaults filled in; fields of other schedulers have no effect in diffusers."""
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in FIELDS:
            raise ExportError(f"{name}: {key}: is no field that a scheduler is known to have; remove it")
        if key in entry.fields | RETIRED:
            _check(f"{name}: {key}", FIELDS[key], value, key in entry.refused)
            if isinstance(DEFAULTS.get(key), bool) and not isinstance(value, bool | None):
                raise ExportError(f"{name}: {key}: got {value!r}, expected true or false")
    given = {key: value for key, value in config.items() if key in entry.fields | RETIRED}
    return {**DEFAULTS, **entry.defaults, **given}


def _check(where: str, known: Field, value: Any, never: bool) -> None:
    if never and value:
        raise ExportError(f"{where}: got {value!r}, which this scheduler means in another way than any spacing here")
    if known.values is not None and not any(type(value) is type(v) and value == v for v in known.values):
        choices = " or ".join(map(repr, known.values))
        raise ExportError(f"{where}: got {value!r}, expected {choices} ({known.note}); change the configuration")


def _translate(values: Mapping[str, Any], name: str, entry: Scheduler) -> Translation:
    prediction = PREDICTION_TYPES[values["prediction_type"]]
    if values["predict_epsilon"] is False:
        prediction = "x0"
    flow = name == FLOW_SCHEDULER or values["use_flow_sigmas"] is True
    if flow != (prediction == "flow"):
        raise ValueError(f"prediction_type: got {values['prediction_type']!r}, and {_flow_words(flow)}")
    schedule = _flow_schedule(values, name) if flow else _schedule(values)
    if prediction == "eps" and schedule.alpha[-1] == 0:
        raise ValueError("rescale_betas_zero_snr: with epsilon the image cannot be told at the last timestep")
    spacing = _spacing(values, name)
    if flow and spacing in ("karras", "logsnr"):
        raise ValueError(
            f"use_flow_sigmas: together with the spacing {spacing} it means no path that a network learned"
        )
    solver, options = _solver(values, name, entry)
    defaults = Defaults(solver, min(entry.steps, schedule.T), spacing, options)
    variance = VARIANCE_TYPES[values["variance_type"] or "fixed_small"]
    return Translation(schedule, prediction, variance, _clip(values), defaults, flow)


def _flow_words(flow: bool) -> str:
    return "flow sigmas need flow_prediction" if flow else "flow_prediction needs use_flow_sigmas"


# -- the schedule -----------------------------------------------------------------------------------------------------


def _flow_schedule(values: Mapping[str, Any], name: str) -> NoiseSchedule:
    shift = _number(values, "shift" if name == FLOW_SCHEDULER else "flow_shift")
    if shift <= 0:
        raise ValueError(f"shift: got {shift}, expected a positive number")
    return NoiseSchedule.flow_matching(_timesteps(values), shift)


def _schedule(values: Mapping[str, Any]) -> NoiseSchedule:
    betas = _betas(values)
    if values["rescale_betas_zero_snr"] is not True:
        return NoiseSchedule.from_betas(betas)
    root = np.sqrt(np.cumprod(1 - betas))
    if len(root) < 2:
        raise ValueError("rescale_betas_zero_snr: got one timestep, expected more")
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al. 2023, algorithm 1
    return NoiseSchedule.from_alphas_cumprod(rescaled**2)


def _betas(values: Mapping[str, Any]) -> Float:
    if values["trained_betas"] is not None:
        return _trained(values["trained_betas"], _timesteps(values))
    T, kind = _timesteps(values), values["beta_schedule"]
    if kind == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(T).betas
    start, end = _number(values, "beta_start"), _number(values, "beta_end")
    if kind == "linear":
        return np.linspace(start, end, T)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, T) ** 2
    return (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start  # sigmoid


def _trained(value: Any, T: int) -> Float:
    if not isinstance(value, list) or len(value) != T:
        got = f"{len(value)} of them" if isinstance(value, list) else repr(value)
        raise ValueError(f"trained_betas: got {got}, expected {T} numbers, as num_train_timesteps says")
    wrong = [beta for beta in value if type(beta) not in (int, float) or not 0 < beta <= 1]
    if wrong:
        raise ValueError(f"trained_betas: got {wrong[0]!r}, expected numbers in (0, 1]")
    return np.asarray(value, dtype=np.float64)


def _timesteps(values: Mapping[str, Any]) -> int:
    T = values["num_train_timesteps"]
    if type(T) is not int or not 1 <= T <= MAX_TIMESTEPS:
        raise ValueError(f"num_train_timesteps: got {T!r}, expected a whole number from 1 to {MAX_TIMESTEPS}")
    return T


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if type(value) not in (int, float) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{name}: got {value!r}, expected a number from 0 to {MAX_NUMBER:g}")
    return float(value)


# -- the sampling -----------------------------------------------------------------------------------------------------


def _clip(values: Mapping[str, Any]) -> tuple[float, float] | None:
    bound = _number(values, "clip_sample_range")
    return (-bound, bound) if values["clip_sample"] is True else None


def _spacing(values: Mapping[str, Any], name: str) -> str:
    if values["use_karras_sigmas"] is True:
        return "karras"
    if values["use_exponential_sigmas"] is True or values["use_lu_lambdas"] is True:
        return "logsnr"
    if name == "LCMScheduler" or values["use_flow_sigmas"] is True:
        return "trailing"
    return str(values["timestep_spacing"])


def _solver(values: Mapping[str, Any], name: str, entry: Scheduler) -> tuple[str, dict[str, Any]]:
    order, kind = values["solver_order"], values["solver_type"]
    if entry.solver == "dpmpp_2m":
        return _dpm_solver(order, kind, values["algorithm_type"] == SDE)
    options: dict[str, dict[str, Any]] = {
        "ipndm": {"order": 4},
        "deis": {"order": order},
        "unipc": {"order": order, "variant": kind if kind in ("bh1", "bh2") else "bh2"},
        "lcm": {"timestep_scaling": _number(values, "timestep_scaling")},
    }
    stochastic = name == FLOW_SCHEDULER and values["stochastic_sampling"] is True
    return "consistency" if stochastic else entry.solver, options.get(entry.solver, {})


def _dpm_solver(order: int, kind: str, sde: bool) -> tuple[str, dict[str, Any]]:
    if sde and (order == 3 or (order == 2 and kind == "heun")):
        raise ValueError(f"algorithm_type: {SDE} with solver_order {order} and solver_type {kind} is not here")
    if sde and order == 2:
        return "dpmpp_2m_sde", {}
    if order == 1:
        return "dpmpp_1", {"sde": True} if sde else {}
    return DATA_SOLVERS[order - 1], {"kind": "heun"} if order == 2 and kind == "heun" else {}
