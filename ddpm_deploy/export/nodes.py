"""Writing ONNX graphs node by node, and placing a denoiser among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.bundle.manifest import BATCH
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import opset_of

WEIGHTS = "denoiser/"  # every name of the denoiser gets a prefix: users' graphs may use any name
MIN_OPSET = 18
RESERVED = frozenset(
    {
        "state",
        "t",
        "predict",
        "clip",
        "update",
        "log_variance",
        "noise",
        "guidance",
        "next_state",
        "x0",
        "finite",
        "x_T",
        "samples",
    }
)


class Nodes:
    """A growing list of nodes and their constants; a call appends one node and gives the name of its output.

    scope: what the names begin with; different for a graph and the body inside it.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.protos: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def __call__(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = f"{self.scope}/{op}_{len(self.protos)}"
        self.protos.append(helper.make_node(op, inputs, [output or name], name=name, **attributes))
        return output or name

    def several(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Append a node with `count` outputs."""
        name = f"{self.scope}/{op}_{len(self.protos)}"
        outputs = [f"{name}/{i}" for i in range(count)]
        self.protos.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def integers(self, values: ArrayLike) -> str:
        """A constant of int64: an index, axes or a shape."""
        return self._constant(np.asarray(values, np.int64))

    def number(self, value: ArrayLike) -> str:
        """A constant of float32."""
        return self._constant(np.asarray(value, np.float32))

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """What the nodes need as initializers."""
        return list(self._constants.values())

    def _constant(self, value: np.ndarray) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"{self.scope}/constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(value, name)
        return self._constants[key].name


def place(nodes: Nodes, denoiser: onnx.ModelProto, wires: Mapping[str, str], activations: str = WEIGHTS) -> str:
    """Append the denoiser's nodes, its inputs wired to other tensors, and give the name of its prediction.

    activations: what the names between the nodes begin with; different for each copy of the same weights.
    """
    graph = denoiser.graph
    kept = {tensor.name for tensor in _initializers(graph)}

    def name_of(name: str) -> str:
        return wires.get(name) or f"{WEIGHTS if name in kept else activations}{name}"

    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _rename_node(copy, name_of, activations)
        nodes.protos.append(copy)
    return name_of(graph.output[0].name)


def add_weights(graph: onnx.GraphProto, denoiser: onnx.ModelProto) -> None:
    """Copy the denoiser's initializers into a graph, under the names that `place` gives them; do so last.

    Messages are copied whenever they go into another one, and weights may be large.
    """
    dense, sparse = len(graph.initializer), len(graph.sparse_initializer)
    graph.initializer.extend(denoiser.graph.initializer)
    graph.sparse_initializer.extend(denoiser.graph.sparse_initializer)
    for tensor in (*graph.initializer[dense:], *(found.values for found in graph.sparse_initializer[sparse:])):
        tensor.name = f"{WEIGHTS}{tensor.name}"


def make_model(denoiser: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model around the graph with the operators, functions and versions of the denoiser."""
    return helper.make_model(
        graph,
        ir_version=denoiser.ir_version,
        opset_imports=denoiser.opset_import,
        functions=denoiser.functions,
    )


def value_infos(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    """Inputs or outputs of a graph from their specs."""
    return [
        helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
        for spec in specs
    ]


def check_denoiser(
    denoiser: onnx.ModelProto, inputs: Sequence[TensorSpec], sample_shape: Sequence[int | str], learned_variance: bool
) -> None:
    """Raise ExportError where no graph can be built around this denoiser. inputs: what it should take."""
    opset = opset_of(denoiser)
    if opset < MIN_OPSET:
        raise ExportError(f"denoiser: got opset {opset}, expected {MIN_OPSET} or later; convert it")
    names, kept = [spec.name for spec in inputs], {tensor.name for tensor in _initializers(denoiser.graph)}
    found = [value.name for value in denoiser.graph.input if value.name not in kept]
    if sorted(found) != sorted(names) or names[:2] != ["x", "t"]:
        raise ExportError(f"denoiser: got inputs {found}, expected x, t and {names[2:]}; rename them")
    if taken := sorted(RESERVED & set(names[2:])):
        raise ExportError(f"conditions: got {taken}, which the graphs have for themselves; rename them")
    for spec, shape in zip(inputs, ((BATCH, *sample_shape), (BATCH,)), strict=False):
        if spec.shape != shape:
            raise ExportError(f"denoiser: {spec.name}: got shape {list(spec.shape)}, expected {list(shape)}")
    if predicts_variance(denoiser, sample_shape) != learned_variance:
        raise ExportError(f"denoiser: learned_variance: got {learned_variance}, but its output has other channels")


def predicts_variance(denoiser: onnx.ModelProto, sample_shape: Sequence[int | str]) -> bool:
    """Whether the network's output has a second half of channels; raises ExportError for any other number."""
    axes, channels = denoiser.graph.output[0].type.tensor_type.shape.dim, int(sample_shape[0])
    found = axes[1].dim_value if len(axes) > 1 else 0
    if found not in (channels, 2 * channels):
        raise ExportError(
            f"denoiser: got {found} output channels, expected {channels}, or {2 * channels} with variances"
        )
    return found != channels


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)


def _rename_node(node: onnx.NodeProto, name_of: Callable[[str], str], prefix: str) -> None:
    node.name = f"{prefix}{node.name}" if node.name else ""
    for field in (node.input, node.output):
        renamed = [name_of(name) if name else "" for name in field]
        del field[:]
        field.extend(renamed)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            _rename_graph(graph, name_of, prefix)


def _rename_graph(graph: onnx.GraphProto, name_of: Callable[[str], str], prefix: str) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *_initializers(graph)):
        value.name = name_of(value.name)
    for node in graph.node:
        _rename_node(node, name_of, prefix)
