"""What the float32 network computed at export, kept in the bundle so that any machine can compare without torch.

`reference.npz` is an uncompressed zip of .npy members: `x`, `t`, `prediction`, `condition.NAME` for single
evaluations, and `trajectory.plan` (JSON as bytes), `.x_T`, `.noise`, `.guidance`, `.predictions`, `.states`,
`.condition.NAME`.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import BundleError
from ddpm_deploy.plan import Plan

REFERENCE_NAME = "reference.npz"
MAX_MEMBERS = 256
DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool", "float16", "int8", "int16")
REMEDY = "copy the bundle or export it again"

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of a plan through the float32 network.

    x_T: (B, *S). noise: (N, B, *S), or None for a plan that draws none. guidance: (B,) weights, or None.
    predictions: (N, B, *S') outputs, guided with the weights where there are any.
    states: (N+1, B, *S), what the network saw at each row, and the sample at the end. conditions: (B, ...) each.
    """

    plan: Plan
    x_T: Array  # noqa: N815
    noise: Array | None
    predictions: Array
    states: Array
    conditions: Mapping[str, Array] = field(default_factory=dict)
    guidance: Array | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """Float32 outputs of the network at several t, and one trajectory.

    x: (R, *S). t: (R,) spread over [0, T-1]. prediction: (R, *S'). conditions: (R, ...) each.
    """

    x: Array
    t: Array
    prediction: Array
    trajectory: Trajectory
    conditions: Mapping[str, Array] = field(default_factory=dict)


def write_reference(reference: Reference) -> bytes:
    """The contents of reference.npz; the same reference gives the same bytes."""
    _check(reference)
    members = _members(reference)
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], members))
    return buffer.getvalue()


def read_reference(data: bytes) -> Reference:
    """Parse reference.npz; never unpickles, allocates no more than the file holds. Raises BundleError."""
    members = _read_members(data)
    try:
        reference = _from_members(members)
        _check(reference)
    except KeyError as error:
        raise BundleError(f"{REFERENCE_NAME}: {error} is missing; {REMEDY}") from None
    except ValueError as error:
        raise BundleError(f"{REFERENCE_NAME}: {error}; {REMEDY}") from None
    if members:
        raise BundleError(f"{REFERENCE_NAME}: unknown member {min(members)!r}; upgrade ddpm-deploy")
    return reference


def _members(reference: Reference) -> dict[str, Array]:
    run = reference.trajectory
    members = {"x": reference.x, "t": reference.t, "prediction": reference.prediction}
    members |= {f"condition.{name}": array for name, array in reference.conditions.items()}
    members["trajectory.plan"] = np.frombuffer(run.plan.to_json().encode(), np.uint8)
    for name in ("x_T", "noise", "guidance", "predictions", "states"):
        if getattr(run, name) is not None:
            members[f"trajectory.{name}"] = getattr(run, name)
    return members | {f"trajectory.condition.{name}": array for name, array in run.conditions.items()}


def _from_members(members: dict[str, Array]) -> Reference:
    plan = Plan.from_json(members.pop("trajectory.plan").tobytes().decode("utf-8"))
    trajectory = Trajectory(
        plan=plan,
        x_T=members.pop("trajectory.x_T"),
        noise=members.pop("trajectory.noise", None),
        guidance=members.pop("trajectory.guidance", None),
        predictions=members.pop("trajectory.predictions"),
        states=members.pop("trajectory.states"),
        conditions=_take(members, "trajectory.condition."),
    )
    x, t, prediction = (members.pop(name) for name in ("x", "t", "prediction"))
    return Reference(x, t, prediction, trajectory, _take(members, "condition."))


def _take(members: dict[str, Array], prefix: str) -> dict[str, Array]:
    names = [name for name in members if name.startswith(prefix)]
    return {name.removeprefix(prefix): members.pop(name) for name in names}


def _check(reference: Reference) -> None:
    """Raise ValueError where shapes do not belong together."""
    run = reference.trajectory
    if min(reference.x.ndim, reference.prediction.ndim, run.x_T.ndim) < 2 or not (len(reference.x) and len(run.x_T)):
        raise ValueError("x, prediction, trajectory.x_T: got an empty array, expected (R, ...) and (B, ...)")
    if run.noise is None and not run.plan.is_deterministic:
        raise ValueError("trajectory.noise: missing, but the plan draws noise")
    for name, (array, shape) in _float_members(reference).items():
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name}: got {array.dtype} {array.shape}, expected finite float32 {shape}")
    _check_conditions("condition", reference.conditions, len(reference.x))
    _check_conditions("trajectory.condition", run.conditions, len(run.x_T))


def _float_members(reference: Reference) -> dict[str, tuple[Array, tuple[int, ...]]]:
    """Each float array with the shape that it must have."""
    run = reference.trajectory
    N, R, B = len(run.plan), len(reference.x), len(run.x_T)
    shape, out = reference.x.shape[1:], reference.prediction.shape[1:]
    arrays = {
        "x": (reference.x, (R, *shape)),
        "t": (reference.t, (R,)),
        "prediction": (reference.prediction, (R, *out)),
        "trajectory.x_T": (run.x_T, (B, *shape)),
        "trajectory.predictions": (run.predictions, (N, B, *out)),
        "trajectory.states": (run.states, (N + 1, B, *shape)),
    }
    if run.guidance is not None:
        arrays["trajectory.guidance"] = (run.guidance, (B,))
    return arrays if run.noise is None else arrays | {"trajectory.noise": (run.noise, (N, B, *shape))}


def _check_conditions(prefix: str, conditions: Mapping[str, Array], rows: int) -> None:
    for name, array in conditions.items():
        if array.shape[:1] != (rows,):
            raise ValueError(f"{prefix}.{name}: got shape {array.shape}, expected ({rows}, ...)")


def _read_members(data: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_MEMBERS or len({entry.filename for entry in entries}) < len(entries):
                raise ValueError(f"got {len(entries)} members, expected at most {MAX_MEMBERS}, all different")
            if sum(entry.file_size for entry in entries) > len(data):
                raise ValueError("the members are larger than the file")
            return {entry.filename.removesuffix(".npy"): _read_member(archive, entry) for entry in entries}
    except BundleError:
        raise
    except Exception as error:  # zipfile and numpy's header parser raise a dozen kinds on damaged input
        raise BundleError(f"{REFERENCE_NAME}: {error}; {REMEDY}") from None


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """One array; its header must announce exactly the bytes that follow, so that nothing larger is ever allocated."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename}: is compressed, expected a stored member")
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{entry.filename}: got .npy version {version}, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.name not in DTYPES or not dtype.isnative or min(shape, default=0) < 0:
            raise ValueError(f"{entry.filename}: got dtype {dtype}, shape {shape}; expected one of {', '.join(DTYPES)}")
        body = stream.read()
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{entry.filename}: got {len(body)} bytes, expected {dtype} of shape {shape}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
