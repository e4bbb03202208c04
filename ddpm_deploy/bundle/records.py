"""From JSON values to the records of the manifest, every field checked."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ddpm_deploy.bundle.fields import (
    Fields,
    choice,
    distinct,
    free_mapping,
    mapping,
    number,
    optional,
    refuse,
    sequence,
    text,
    whole,
)
from ddpm_deploy.bundle.manifest import (
    MANIFEST_NAME,
    ROLES,
    TORCH,
    Condition,
    DataFile,
    Defaults,
    Manifest,
    ModelFile,
    ModelInfo,
    OutputAffine,
    TensorSpec,
)
from ddpm_deploy.errors import BundleError
from ddpm_deploy.schedule import MAX_TIMESTEPS, PREDICTIONS, NoiseSchedule
from ddpm_deploy.solvers import VARIANCES

MAX_RANK = 8
MAX_ELEMENTS = 2**28
MAX_FILE_BYTES = 2**40
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}"
WORD = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"
SYMBOL = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
SHA256 = r"[0-9a-f]{64}"

MODEL_KEYS = ("name", "version", "licence", "provenance")
GRAPH_KEYS = ("role", "precision", "target", "opset", "inputs", "outputs", "parity", "measured_on", "over_budget")
FILE_KEYS = ("path", *GRAPH_KEYS, "size_bytes", "sha256", "weights")
DATA_KEYS = ("path", "size_bytes", "sha256")
MANIFEST_KEYS = (
    "format_version",
    "model",
    "sample_shape",
    "size_multiple",
    "output",
    "prediction",
    "variance",
    "schedule",
    "clip",
    "conditions",
    "defaults",
    "network",
    "files",
    "weights",
    "reference",
)
METADATA_KEYS = (*MANIFEST_KEYS[:-4], "graph")

# New in formats 1.1 and 1.2, and what they mean where they are missing.
DEFAULTS_DEFAULTS: dict[str, Any] = {"timesteps": None}
CONDITION_DEFAULTS: dict[str, Any] = {"null": None}
GRAPH_DEFAULTS: dict[str, Any] = {"measured_on": None, "over_budget": []}
FILE_DEFAULTS = GRAPH_DEFAULTS | {"weights": None}
METADATA_DEFAULTS: dict[str, Any] = {"size_multiple": None}
MANIFEST_DEFAULTS = METADATA_DEFAULTS | {"weights": []}


def decode_manifest(fields: Fields) -> Manifest:
    """The manifest from the members of bundle.json, or of an ONNX file's metadata; raises BundleError."""
    shape = fields.take("sample_shape", sequence, whole, 1, MAX_ELEMENTS)
    if not 1 <= len(shape) <= MAX_RANK or math.prod(shape) > MAX_ELEMENTS:
        raise refuse(f"{fields.where}: sample_shape", list(shape), f"1 to {MAX_RANK} axes, {MAX_ELEMENTS} elements")
    multiple = fields.take("size_multiple", optional, whole, 1, MAX_ELEMENTS)
    if multiple is not None and len(shape) != 3:
        raise refuse(f"{fields.where}: size_multiple", multiple, "null, as only pictures have a height and a width")
    schedule = fields.take("schedule", _schedule)
    conditions = fields.take("conditions", sequence, _condition)
    distinct([condition.name for condition in conditions], f"{fields.where}: conditions", "name")
    return Manifest(
        model=fields.take("model", _model),
        sample_shape=shape,
        size_multiple=multiple,
        output=fields.take("output", _output, shape[0]),
        prediction=fields.take("prediction", choice, PREDICTIONS),
        variance=fields.take("variance", choice, VARIANCES),
        schedule=schedule,
        clip=fields.take("clip", optional, _interval),
        conditions=conditions,
        defaults=fields.take("defaults", _defaults, schedule.T),
        format_version=fields.take("format_version", text),
        **_files(fields),
    )


def _files(fields: Fields) -> dict[str, Any]:
    if "graph" in fields.values:
        return {"network": None, "files": (fields.take("graph", _graph),), "reference": None}
    network = fields.take("network", optional, _network)
    files = fields.take("files", sequence, _model_file)
    reference = fields.take("reference", optional, _data_file)
    weights = fields.take("weights", sequence, _data_file)
    names = [file.path for file in (*files, *weights, *([] if reference is None else [reference]))]
    where = f"{fields.where}: files"
    distinct([name.casefold() for name in names], where, "path")
    distinct([f"{file.role}.{file.precision}.{file.target}" for file in files], where, "role, precision and target")
    if not files:
        raise BundleError(f"{where}: got none, expected at least one; export the model again")
    if network is None and any(file.target == TORCH for file in files):
        raise BundleError(f"{fields.where}: network: got null, but files has one for torch; export the model again")
    for i, file in enumerate(files):
        if file.weights is not None and file.weights not in [data.path for data in weights]:
            raise refuse(f"{where}[{i}].weights", file.weights, "the path of one of weights, or null")
    return {"network": network, "files": files, "weights": weights, "reference": reference}


def _schedule(value: Any, where: str) -> NoiseSchedule:
    fields = Fields(value, where, ("alpha", "sigma"))
    alpha, sigma = (fields.take(key, sequence, number) for key in ("alpha", "sigma"))
    if len(alpha) > MAX_TIMESTEPS:
        raise refuse(f"{where}.alpha", list(alpha), f"at most {MAX_TIMESTEPS} timesteps")
    try:
        return NoiseSchedule.from_alpha_sigma(alpha, sigma)
    except ValueError as error:
        raise BundleError(f"{where}.{error}; export the model again") from None


def _model(value: Any, where: str) -> ModelInfo:
    fields = Fields(value, where, MODEL_KEYS)
    name, version, licence = (fields.take(key, text, r"[^\x00-\x1f\x7f]*") for key in MODEL_KEYS[:3])
    return ModelInfo(name, version, licence, fields.take("provenance", free_mapping))


def _output(value: Any, where: str, channels: int) -> OutputAffine:
    fields = Fields(value, where, ("scale", "offset", "units"))
    scale, offset = (fields.take(key, sequence, number) for key in ("scale", "offset"))
    for key, numbers in (("scale", scale), ("offset", offset)):
        if len(numbers) not in (1, channels):
            raise refuse(f"{where}.{key}", list(numbers), f"1 or {channels} numbers, one for each channel")
    if 0.0 in scale:
        raise refuse(f"{where}.scale", list(scale), "no zero")
    return OutputAffine(scale, offset, fields.take("units", text))


def _interval(value: Any, where: str) -> tuple[float, float]:
    bounds = sequence(value, where, number)
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise refuse(where, value, "[low, high] with low < high, or null")
    return bounds[0], bounds[1]


def _condition(value: Any, where: str) -> Condition:
    fields = Fields(value, where, ("name", "shape", "dtype", "classes", "null"), CONDITION_DEFAULTS)
    name = fields.take("name", text, SYMBOL)
    if name in ("x", "t"):
        raise refuse(f"{where}.name", name, "another name than x and t, the denoiser's own inputs")
    shape = fields.take("shape", sequence, whole, 1, MAX_ELEMENTS)
    if len(shape) > MAX_RANK or math.prod(shape) > MAX_ELEMENTS:
        raise refuse(f"{where}.shape", list(shape), f"at most {MAX_RANK} axes, {MAX_ELEMENTS} elements")
    dtype = fields.take("dtype", choice, DTYPES)
    classes = fields.take("classes", optional, sequence, text)
    if classes is not None and "int" not in dtype:
        raise refuse(f"{where}.classes", list(classes), f"null, as {dtype} is no whole number")
    return Condition(name, shape, dtype, classes, fields.take("null", optional, _null, dtype, len(classes or ())))


def _null(value: Any, where: str, dtype: str, classes: int) -> int | float:
    if "float" in dtype:
        greatest = float(np.finfo(dtype).max)
        if not -greatest <= number(value, where) <= greatest:
            raise refuse(where, value, f"a number that {dtype} can hold")
        return number(value, where)
    if dtype == "bool":
        raise refuse(where, value, "null, as neither of true and false can stand for neither")
    limits = np.iinfo(dtype)
    return whole(value, where, max(classes, int(limits.min)), int(limits.max))


def _defaults(value: Any, where: str, T: int) -> Defaults:
    fields = Fields(value, where, ("solver", "steps", "spacing", "options", "timesteps"), DEFAULTS_DEFAULTS)
    solver, spacing = (fields.take(key, text, WORD) for key in ("solver", "spacing"))
    steps, options = fields.take("steps", whole, 1, T), fields.take("options", free_mapping)
    return Defaults(solver, steps, spacing, options, fields.take("timesteps", optional, _timesteps, steps, T))


def _timesteps(value: Any, where: str, steps: int, T: int) -> tuple[float, ...]:
    t = sequence(value, where, number)
    falls = all(a > b for a, b in pairwise((T, *t, -1)))
    if len(t) != steps or not falls or t[0] > T - 1 or t[-1] < 0:
        raise refuse(where, value, f"{steps} numbers from {T - 1} down to 0, each below the one before")
    return t


def _network(value: Any, where: str) -> dict[str, Any]:
    fields = Fields(value, where, ("kind", "config"))
    return {"kind": fields.take("kind", text, WORD), "config": fields.take("config", free_mapping)}


def _tensor(value: Any, where: str) -> TensorSpec:
    fields = Fields(value, where, ("name", "shape", "dtype"))
    return TensorSpec(
        fields.take("name", text, SYMBOL),
        fields.take("shape", sequence, _axis),
        fields.take("dtype", choice, DTYPES),
    )


def _axis(value: Any, where: str) -> int | str:
    return text(value, where, SYMBOL) if isinstance(value, str) else whole(value, where, 1, MAX_ELEMENTS)


def _graph(value: Any, where: str) -> ModelFile:
    return _described(Fields(value, where, GRAPH_KEYS, GRAPH_DEFAULTS), where)


def _described(fields: Fields, where: str) -> ModelFile:
    inputs, outputs = (fields.take(key, sequence, _tensor) for key in ("inputs", "outputs"))
    distinct([tensor.name for tensor in inputs + outputs], f"{where}: inputs and outputs", "name")
    return ModelFile(
        path="model.onnx",
        role=fields.take("role", choice, ROLES),
        precision=fields.take("precision", text, WORD),
        target=fields.take("target", text, WORD),
        opset=fields.take("opset", optional, whole, 1, 1000),
        inputs=inputs,
        outputs=outputs,
        parity=fields.take("parity", optional, _parity),
        measured_on=fields.take("measured_on", optional, text),
        over_budget=fields.take("over_budget", sequence, text),
    )


def _parity(value: Any, where: str) -> dict[str, float]:
    return {name: number(figure, f"{where}.{name}") for name, figure in mapping(value, where).items()}


def _model_file(value: Any, where: str) -> ModelFile:
    fields = Fields(value, where, FILE_KEYS, FILE_DEFAULTS)
    weights = fields.take("weights", optional, file_name)
    return replace(_described(fields, where), weights=weights, **_identity(fields))


def _data_file(value: Any, where: str) -> DataFile:
    return DataFile(**_identity(Fields(value, where, DATA_KEYS)))


def _identity(fields: Fields) -> dict[str, Any]:
    path = fields.take("path", file_name)
    size_bytes = fields.take("size_bytes", whole, 1, MAX_FILE_BYTES)
    return {"path": path, "size_bytes": size_bytes, "sha256": fields.take("sha256", text, SHA256)}


def file_name(value: Any, where: str) -> str:
    """The plain name of a file inside the bundle: no folder, no `..`, no bundle.json."""
    name = text(value, where)
    try:
        text(name, where, FILE_NAME)
    except BundleError:
        raise refuse(where, value, "a plain file name inside the bundle") from None
    if name.casefold() == MANIFEST_NAME:
        raise refuse(where, value, f"another name than {MANIFEST_NAME}")
    return name
