"""What every source of a model gives, and what its user may say about it; imports neither torch nor onnx."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from ddpm_deploy.bundle import Condition, Defaults, OutputAffine
from ddpm_deploy.bundle.records import MAX_ELEMENTS
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.said import NO_CLIP, NORMALISERS
from ddpm_deploy.schedule import NoiseSchedule

if TYPE_CHECKING:
    import onnx
    from torch import nn

PICTURES = OutputAffine((127.5,), (127.5,), "8-bit")  # pictures in [-1, 1]


@dataclass(frozen=True)
class Source:
    """A model that can be exported. Exactly one of `network` and `graph` is set.

    network: `forward(x (B, *S) float32, t (B,) float32, **conditions)`, in eval mode. graph: the user's own, with
    inputs `x`, `t` and the conditions, output `prediction`. spec: how `model.build_network` makes the network, or
    None. name: of the model. provenance: JSON values, without paths of this machine. Others as in `bundle.Manifest`.
    """

    sample_shape: tuple[int, ...]
    schedule: NoiseSchedule
    prediction: str
    variance: str
    clip: tuple[float, float] | None
    output: OutputAffine
    conditions: tuple[Condition, ...]
    defaults: Defaults
    name: str
    provenance: dict[str, Any]
    network: nn.Module | None = None
    graph: onnx.ModelProto | None = None
    spec: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.network is None) == (self.graph is None):
            raise ValueError("source: expected one of network and graph, not both or none")
        if min(self.sample_shape, default=0) < 1 or math.prod(self.sample_shape) > MAX_ELEMENTS:
            raise ValueError(
                f"sample_shape: got {self.sample_shape}, expected axes of at least 1, {MAX_ELEMENTS} elements at most"
            )
        if self.defaults.steps > self.schedule.T:
            raise ValueError(f"defaults.steps: got {self.defaults.steps}, expected at most {self.schedule.T}")


@dataclass(frozen=True)
class Settings:
    """What the user says about a model; None leaves it to the source. A source refuses by name what it has no use for.

    schedule: a mapping with "kind", a key of `said.SCHEDULES`, and that constructor's arguments, such as
    `{"kind": "linear", "T": 1000}`, or a `NoiseSchedule`. clip: (low, high), or "none". output: a mapping of scale and
    offset (a number, or one for each channel) and units. conditions: mappings of name, shape, dtype and classes.
    x_name, t_name, output_name: of an ONNX file. allow_scalar_timestep: take an ONNX file with one t for the whole
    batch. step: which checkpoint of a run. factory_options: arguments of a factory. weights: a safetensors file.
    """

    sample_shape: Sequence[int] | None = None
    schedule: NoiseSchedule | Mapping[str, Any] | None = None
    prediction: str | None = None
    variance: str | None = None
    clip: Sequence[float] | str | None = None
    output: OutputAffine | Mapping[str, Any] | None = None
    conditions: Sequence[Condition | Mapping[str, Any]] | None = None
    x_name: str | None = None
    t_name: str | None = None
    output_name: str | None = None
    allow_scalar_timestep: bool = False
    step: int | None = None
    factory_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, normalise in NORMALISERS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, normalise(value))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Read a table of a recipe; unknown keys are refused."""
        known = [member.name for member in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{name}: no setting of a source; expected some of {', '.join(known)}")
        return cls(**values)

    def require_only(self, names: Collection[str], what: str) -> None:
        """Raise ExportError where anything else is set: `what` (the source, in words) would ignore it."""
        for member in fields(self):
            value = getattr(self, member.name)
            said = value is not None and value is not False and value != {}
            if said and member.name not in names:
                raise ExportError(
                    f"{member.name}: of no use to {what}, which takes {', '.join(sorted(names))}; drop it"
                )

    # -- what is said, or else the source's own ---------------------------------------------------------------------

    def shape_or(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The sample shape; one of another rank or number of channels than the source's own is refused."""
        given = self.given_shape
        if given is not None and (len(given) != len(own) or given[0] != own[0]):
            raise ExportError(f"sample_shape: got {given}, but the model takes {own}; only the size may differ")
        return given or own

    def clip_or(self, own: tuple[float, float] | None) -> tuple[float, float] | None:
        """The clip range."""
        if self.clip is None:
            return own
        return None if self.clip == NO_CLIP else cast("tuple[float, float]", self.clip)

    def output_or(self, own: OutputAffine | None) -> OutputAffine:
        """The way to user units; a source without one of its own has asked for it before."""
        return cast(OutputAffine, own if self.output is None else self.output)

    @property
    def given_shape(self) -> tuple[int, ...] | None:
        """The sample shape, where one is said."""
        return cast("tuple[int, ...] | None", self.sample_shape)

    @property
    def given_schedule(self) -> NoiseSchedule | None:
        """The schedule, where one is said."""
        return cast("NoiseSchedule | None", self.schedule)

    def conditions_or(self, own: tuple[Condition, ...]) -> tuple[Condition, ...]:
        """The conditions; the user's may only name the classes and the null of the source's own."""
        if self.conditions is None:
            return own
        given = cast("tuple[Condition, ...]", self.conditions)
        for mine, theirs in zip(given, own, strict=False):
            _check_same(mine, theirs)
        if len(given) != len(own):
            names = ", ".join(condition.name for condition in own) or "none"
            raise ExportError(f"conditions: got {len(given)} of them, but the model takes {names}")
        return tuple(
            replace(mine, null=theirs.null) if mine.null is None else mine
            for mine, theirs in zip(given, own, strict=True)
        )


def _check_same(given: Condition, own: Condition) -> None:
    for name in ("name", "shape", "dtype"):
        if getattr(given, name) != getattr(own, name):
            raise ExportError(
                f"conditions: {given.name}: {name}: got {getattr(given, name)!r}, expected {getattr(own, name)!r}"
            )
    if own.classes is not None and given.classes is not None:
        null_is_last = given.null == len(given.classes) and own.null is None  # the network counts it as a class
        if len(given.classes) + null_is_last != len(own.classes):
            raise ExportError(
                f"conditions: {given.name}: got {len(given.classes)} classes, expected {len(own.classes)}"
            )


def default_solver(schedule: NoiseSchedule) -> Defaults:
    """The solver for a model that comes with none."""
    return Defaults("unipc", min(12, schedule.T), "trailing")
