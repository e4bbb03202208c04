"""What a user may say about a model, checked: the fields of `Settings` one by one."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_deploy.bundle import VARIANCES, Condition, OutputAffine
from ddpm_deploy.bundle.records import DTYPES
from ddpm_deploy.schedule import PREDICTIONS, NoiseSchedule

NO_CLIP = "none"

SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
    "flow_matching": NoiseSchedule.flow_matching,
    "betas": NoiseSchedule.from_betas,
    "alphas_cumprod": NoiseSchedule.from_alphas_cumprod,
    "alpha_sigma": NoiseSchedule.from_alpha_sigma,
}


def make_schedule(value: Any) -> NoiseSchedule:
    """A schedule from `{"kind": ..., **arguments}`; raises ValueError that names the key at fault."""
    if isinstance(value, NoiseSchedule):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in SCHEDULES:
        raise ValueError(f"schedule: kind: got {kind!r}, expected one of {', '.join(SCHEDULES)}")
    build = SCHEDULES[value["kind"]]
    arguments = {name: given for name, given in value.items() if name != "kind"}
    known = inspect.signature(build).parameters
    for name in arguments:
        if name not in known:
            raise ValueError(f"schedule: {name}: unknown to kind {value['kind']!r}, which has {', '.join(known)}")
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"schedule: {error}") from None


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not shape or any(type(axis) is not int or axis < 1 for axis in shape):
        raise ValueError(f"sample_shape: got {value!r}, expected whole numbers, at least 1, such as 3, 32, 32")
    return shape


def _choice(name: str, choices: Sequence[str]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")
        return str(value)

    return check


def _clip(value: Any) -> tuple[float, float] | str:
    if value == NO_CLIP:
        return NO_CLIP
    bounds = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(bounds) != 2 or not all(_is_number(bound) for bound in bounds) or not bounds[0] < bounds[1]:
        raise ValueError(f"clip: got {value!r}, expected two numbers, low < high, or {NO_CLIP!r}")
    return float(bounds[0]), float(bounds[1])


def _output(value: Any) -> OutputAffine:
    if isinstance(value, OutputAffine):
        return value
    if not isinstance(value, Mapping) or set(value) != {"scale", "offset", "units"}:
        raise ValueError(f"output: got {value!r}, expected scale, offset and units")
    scale, offset = (_numbers(f"output: {name}", value[name]) for name in ("scale", "offset"))
    if 0.0 in scale:
        raise ValueError("output: scale: got 0, expected other numbers")
    return OutputAffine(scale, offset, str(value["units"]))


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not numbers or not all(_is_number(number) for number in numbers):
        raise ValueError(f"{name}: got {value!r}, expected a number, or one for each channel")
    return tuple(float(number) for number in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def make_conditions(value: Any, where: str = "conditions") -> tuple[Condition, ...]:
    """Conditions, or encoder inputs, from mappings; raises ValueError. where: what they are, for messages."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: got {value!r}, expected a list")
    return tuple(_condition(item, where) for item in value)


def _condition(value: Any, where: str) -> Condition:
    if isinstance(value, Condition):
        return value
    known = {"name", "shape", "dtype", "classes", "null"}
    if not isinstance(value, Mapping) or not {"name", "dtype"} <= set(value) <= known:
        raise ValueError(f"{where}: got {value!r}, expected name, shape, dtype, classes and null")
    name, dtype, shape, classes = value["name"], value["dtype"], value.get("shape", ()), value.get("classes")
    if not isinstance(name, str) or dtype not in DTYPES:
        raise ValueError(f"{where}: got {name!r} of dtype {dtype!r}, expected a name and one of {', '.join(DTYPES)}")
    if not isinstance(shape, list | tuple) or any(type(axis) is not int or axis < 1 for axis in shape):
        raise ValueError(f"{where}: {name}: shape: got {shape!r}, expected whole numbers, at least 1")
    if classes is not None and not (isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)):
        raise ValueError(f"{where}: {name}: classes: got {classes!r}, expected a list of texts")
    null = value.get("null")
    if null is not None and type(null) not in ((int, float) if "float" in dtype else (int,)):
        raise ValueError(f"{where}: {name}: null: got {null!r}, expected a number of dtype {dtype}")
    return Condition(name, tuple(shape), dtype, None if classes is None else tuple(classes), null)


def _text(name: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}: got {value!r}, expected a name")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"allow_scalar_timestep: got {value!r}, expected true or false")
    return value


def _step(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"step: got {value!r}, expected a whole number of training steps")
    return value


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"factory_options: got {value!r}, expected values by name")
    return dict(value)


def _path(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"weights: got {value!r}, expected the path of a file")
    return os.fspath(value)


NORMALISERS: dict[str, Callable[[Any], Any]] = {
    "sample_shape": _shape,
    "schedule": make_schedule,
    "prediction": _choice("prediction", PREDICTIONS),
    "variance": _choice("variance", VARIANCES),
    "clip": _clip,
    "output": _output,
    "conditions": make_conditions,
    "x_name": _text("x_name"),
    "t_name": _text("t_name"),
    "output_name": _text("output_name"),
    "allow_scalar_timestep": _flag,
    "step": _step,
    "factory_options": _options,
    "weights": _path,
}
