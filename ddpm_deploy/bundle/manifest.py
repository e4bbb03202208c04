"""What a bundle says about its model: the contents of bundle.json as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_deploy.schedule import NoiseSchedule

FORMAT_VERSION = "1.2"
MANIFEST_NAME = "bundle.json"
ROLES = ("denoiser", "step", "sampler", "encoder", "decoder")
PORTABLE = "onnx"
BATCH, HEIGHT, WIDTH = "B", "H", "W"
TORCH = "torch"


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output of a graph.

    shape: whole numbers, or a name where the axis is free (`"B"` is the batch). dtype: numpy's name.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Condition:
    """A tensor that steers the network, without its batch axis; `classes` names the values of a label.

    null: what fills the tensor where the network shall do without it, as it has learnt from dropping the condition;
    for a label a value beside its classes. None where it cannot do without, and then there is no guidance by it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...] | None = None
    null: int | float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What the model is and where its weights come from."""

    name: str
    version: str
    licence: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class OutputAffine:
    """From network range to user units, per channel: `user = scale * network + offset`.

    scale, offset: one number per channel (the first axis of the sample shape), or one for all.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    units: str


@dataclass(frozen=True)
class Defaults:
    """The solver that `sample` uses when it is told nothing.

    timesteps: as they were tuned for this model, noisiest first; used where neither solver, steps nor spacing is asked.
    """

    solver: str
    steps: int
    spacing: str
    options: Mapping[str, Any] = field(default_factory=dict)
    timesteps: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ModelFile:
    """One model file of the bundle.

    target: "onnx" for a file that every ONNX runtime reads, else the runtime that it is made for.
    parity: figures measured at export, or None for the reference itself. measured_on: the runtime that did it.
    over_budget: what was over the parity budget of a file that was written all the same. weights: the file of the
    bundle that holds the graph's large tensors, or None where they are inside.
    size_bytes, sha256: left out by whoever makes a record; `write_bundle` computes them from the bytes.
    """

    path: str
    role: str
    precision: str
    target: str
    opset: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_bytes: int = 0
    sha256: str = ""
    parity: Mapping[str, float] | None = None
    measured_on: str | None = None
    over_budget: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True)
class DataFile:
    """A file of the bundle that no runtime loads; `write_bundle` computes size_bytes and sha256."""

    path: str
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything in bundle.json.

    prediction: "eps", "v", "x0" or "flow". variance: the reverse variance the model was trained for, "small",
    "large" or "learned". clip: bounds of the predicted clean image in network range, or None.
    network: how the torch backend builds the module, `{"kind": ..., "config": {...}}`, or None where it cannot.
    weights: files of large tensors, which the graphs of the bundle may share.
    size_multiple: of what height and width have to be multiples, where the graphs leave them free; sample_shape holds
    those that the model was trained on. None where they are fixed.
    """

    model: ModelInfo
    sample_shape: tuple[int, ...]
    output: OutputAffine
    prediction: str
    variance: str
    schedule: NoiseSchedule
    clip: tuple[float, float] | None
    conditions: tuple[Condition, ...]
    defaults: Defaults
    network: Mapping[str, Any] | None
    files: tuple[ModelFile, ...]
    reference: DataFile | None
    weights: tuple[DataFile, ...] = ()
    size_multiple: int | None = None
    format_version: str = FORMAT_VERSION

    @property
    def guided(self) -> bool:
        """Whether the network can do without some condition, so that its samples can be guided towards it."""
        return bool(self.nulls)

    @property
    def nulls(self) -> dict[str, int | float]:
        """The null of each condition that has one."""
        return {condition.name: condition.null for condition in self.conditions if condition.null is not None}

    @property
    def graph_shape(self) -> tuple[int | str, ...]:
        """The sample's axes as the graphs have them: a whole number, or a name where one is free."""
        return self.sample_shape if self.size_multiple is None else (self.sample_shape[0], HEIGHT, WIDTH)

    @property
    def all_files(self) -> tuple[ModelFile | DataFile, ...]:
        """Every file beside bundle.json."""
        return (*self.files, *self.weights, *(() if self.reference is None else (self.reference,)))
