"""An ONNX file that the user already has, brought under the contract of the denoiser graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ddpm_deploy.bundle import Condition
from ddpm_deploy.bundle.records import DTYPES
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import opset_of
from ddpm_deploy.export.sources.base import Settings, Source, default_solver
from ddpm_deploy.export.sources.files import sha256_of_file
from ddpm_deploy.export.sources.onnx_load import load_onnx
from ddpm_deploy.export.sources.onnx_names import Rewriter
from ddpm_deploy.export.sources.onnx_tensors import FLOATS, INTEGERS, Axes, Tensor, describe
from ddpm_deploy.export.weights import is_large

NEEDED = ("schedule", "prediction", "output")
USES = (
    "sample_shape",
    "variance",
    "clip",
    "conditions",
    "x_name",
    "t_name",
    "output_name",
    "allow_scalar_timestep",
    *NEEDED,
)
SCALARS: tuple[tuple[int, ...], ...] = ((), (1,))
BATCH = "B"
PREDICTION = "prediction"


@dataclass(frozen=True)
class Parts:
    """Which tensor of the file is what. predicted: the shape of one sample's prediction."""

    x: Tensor
    t: Tensor
    output: Tensor
    others: tuple[Tensor, ...]
    sample_shape: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def scalar_time(self) -> bool:
        """Whether there is one time for the whole batch."""
        return self.t.shape in SCALARS


def read_onnx(path: Path, settings: Settings) -> Source:
    """Check the file, map its inputs to `x`, `t` and conditions, and make its inputs and outputs float32.

    A time of whole numbers is rounded from ours; one time for the whole batch is refused unless
    `settings.allow_scalar_timestep`, and then the first of the batch is taken. Both are noted in the provenance.
    """
    settings.require_only(USES, "an ONNX file")
    missing = [name for name in NEEDED if getattr(settings, name) is None]
    if missing:
        raise ExportError(f"{path}: an ONNX file does not say {', '.join(missing)}; give them")
    model = load_onnx(path)
    parts = _find_parts(model, settings, path)
    conditions = settings.conditions_or(tuple(_condition(tensor, path) for tensor in parts.others))
    graph = _rewrite(model, parts, conditions, path)
    schedule = settings.given_schedule
    assert schedule is not None
    return Source(
        sample_shape=parts.sample_shape,
        schedule=schedule,
        prediction=str(settings.prediction),
        variance=_variance(settings, parts, path),
        clip=settings.clip_or(None),
        output=settings.output_or(None),
        conditions=conditions,
        defaults=default_solver(schedule),
        name=path.stem,
        provenance=_provenance(graph, parts, path),
        graph=graph,
    )


def _provenance(graph: onnx.ModelProto, parts: Parts, path: Path) -> dict[str, Any]:
    notes: dict[str, Any] = {"source": "onnx", "file_sha256": sha256_of_file(path), "opset": opset_of(graph)}
    if parts.t.dtype in INTEGERS:
        notes["integer_timestep"] = True
    if parts.scalar_time:
        notes["scalar_timestep"] = True
    return notes


# -- which input is which ---------------------------------------------------------------------------------------------


def _named(tensors: Mapping[str, Tensor], name: str, setting: str, path: Path) -> Tensor:
    if name not in tensors:
        raise ExportError(f"{path}: {setting}: got {name!r}, expected one of {', '.join(tensors)}")
    return tensors[name]


def _find_parts(model: onnx.ModelProto, settings: Settings, path: Path) -> Parts:
    inputs, outputs = describe(model)
    x, t = _find_x(inputs, settings, path), _find_t(inputs, settings, path)
    shape = _sample_shape(x, settings, path)
    output, channels = _find_output(outputs, shape, settings, path)
    others = tuple(tensor for tensor in inputs if tensor not in (x, t))
    return Parts(x, t, output, others, shape, (channels, *shape[1:]))


def _find_x(inputs: list[Tensor], settings: Settings, path: Path) -> Tensor:
    if settings.x_name is not None:
        found = _named({tensor.name: tensor for tensor in inputs}, settings.x_name, "x_name", path)
    else:
        found = _only([i for i in inputs if i.dtype in FLOATS and len(i.shape or ()) >= 2], "x_name", "image", path)
    if found.dtype not in FLOATS:
        raise ExportError(f"{path}: {found.name}: got {found.dtype}, expected a float type for the noisy sample")
    if found.shape and isinstance(found.shape[0], int):
        raise ExportError(
            f"{path}: {found.name}: its batch is fixed to {found.shape[0]}, so no other number of samples could be "
            "drawn at once; export it again with a free batch axis"
        )
    return found


def _find_t(inputs: list[Tensor], settings: Settings, path: Path) -> Tensor:
    if settings.t_name is not None:
        found = _named({tensor.name: tensor for tensor in inputs}, settings.t_name, "t_name", path)
    else:
        found = _only([i for i in inputs if i.shape is not None and len(i.shape) <= 1], "t_name", "time", path)
    if found.dtype not in (*FLOATS, *INTEGERS):
        raise ExportError(
            f"{path}: {found.name}: got {found.dtype}, expected a float or whole-number type for the time"
        )
    if found.shape is None or len(found.shape) > 1:
        raise ExportError(f"{path}: {found.name}: got shape {found.shape}, expected one number for each sample")
    if found.shape in SCALARS and not settings.allow_scalar_timestep:
        raise ExportError(
            f"{path}: {found.name}: is one time for the whole batch, so samples at different steps could not share "
            "one; export it again with a time for each, or allow it (--allow-scalar-timestep)"
        )
    return found


def _only(candidates: list[Tensor], setting: str, what: str, path: Path) -> Tensor:
    if len(candidates) != 1:
        names = ", ".join(tensor.name for tensor in candidates) or "none"
        raise ExportError(f"{path}: which input is the {what}? {names} could be; give {setting}")
    return candidates[0]


def _find_output(outputs: list[Tensor], shape: tuple[int, ...], settings: Settings, path: Path) -> tuple[Tensor, int]:
    """The output and its number of channels."""
    by_name = {tensor.name: tensor for tensor in outputs}
    if settings.output_name is not None:
        found = _named(by_name, settings.output_name, "output_name", path)
    else:
        found = _only(outputs, "output_name", "prediction", path) if len(outputs) != 1 else outputs[0]
    if found.dtype not in FLOATS:
        raise ExportError(f"{path}: {found.name}: got {found.dtype}, expected a float type for the prediction")
    axes, unsaid = found.shape, shape[0] * (2 if settings.variance == "learned" else 1)
    if axes is None:
        return found, unsaid
    if not _fits(axes[2:], shape[1:]):
        wanted = ", ".join(map(str, shape))
        raise ExportError(f"{path}: {found.name}: got shape {axes}, expected that of x, (B, {wanted})")
    if isinstance(axes[0], int):
        raise ExportError(
            f"{path}: {found.name}: its batch is fixed to {axes[0]}; export it again with a free batch axis"
        )
    return found, axes[1] if isinstance(axes[1], int) else unsaid


def _fits(axes: Axes, numbers: Sequence[int]) -> bool:
    """Whether axes, some of them free, may have these numbers."""
    return len(axes) == len(numbers) and all(
        axis == number or not isinstance(axis, int) for axis, number in zip(axes, numbers, strict=True)
    )


def _numbers(axes: Axes) -> tuple[int, ...] | None:
    """The axes, where all of them are numbers."""
    numbers = tuple(axis for axis in axes if isinstance(axis, int))
    return numbers if len(numbers) == len(axes) else None


def _sample_shape(x: Tensor, settings: Settings, path: Path) -> tuple[int, ...]:
    given = settings.given_shape
    if given is not None:
        if x.shape is not None and not _fits(x.shape[1:], given):
            raise ExportError(f"sample_shape: got {given}, but {path.name} has {x.name} of shape {x.shape}")
        return given
    own = None if x.shape is None else _numbers(x.shape[1:])
    if own is None:
        raise ExportError(f"{path}: {x.name}: got shape {x.shape}; give sample_shape for the axes without a number")
    return own


def _variance(settings: Settings, parts: Parts, path: Path) -> str:
    channels, taken = parts.predicted[0], parts.sample_shape[0]
    variance = settings.variance or ("learned" if channels == 2 * taken else "small")
    expected = taken * (2 if variance == "learned" else 1)
    if channels != expected:
        raise ExportError(
            f"{path}: the prediction has {channels} channels, expected {expected} (variance {variance!r})"
        )
    return variance


def _condition(tensor: Tensor, path: Path) -> Condition:
    """Its name must be one that a bundle takes, and none of ours."""
    name = re.sub(r"\W", "_", tensor.name)
    name = f"condition_{name}" if name in ("x", "t", PREDICTION) or not re.match(r"[A-Za-z_]", name) else name
    if tensor.dtype not in DTYPES:
        raise ExportError(f"{path}: {tensor.name}: got {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    axes = tensor.shape
    numbers = None if not axes or isinstance(axes[0], int) else _numbers(axes[1:])
    if numbers is None:
        raise ExportError(
            f"{path}: {tensor.name}: got shape {axes}, expected a free batch axis and then numbers for a condition; "
            "export it again with them"
        )
    return Condition(name, numbers, tensor.dtype)


# -- the graph under our names ----------------------------------------------------------------------------------------


def _rewrite(model: onnx.ModelProto, parts: Parts, conditions: tuple[Condition, ...], path: Path) -> onnx.ModelProto:
    rewriter = Rewriter(model)
    rewriter.input("x", parts.x, (BATCH, *parts.sample_shape))
    rewriter.time("t", parts.t, BATCH, scalar=parts.scalar_time)
    for tensor, condition in zip(parts.others, conditions, strict=True):
        rewriter.keep(condition.name, tensor, (BATCH, *condition.shape))
    rewriter.output(PREDICTION, parts.output, (BATCH, *parts.predicted))
    graph = rewriter.finish()
    if is_large(graph):  # more than one message, which the checker cannot take
        return graph
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ExportError(
            f"{path}: is no valid graph with {parts.x.name} of shape {parts.sample_shape}: {line}"
        ) from None
    return graph
