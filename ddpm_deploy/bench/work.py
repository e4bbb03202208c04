"""The work of one forward, counted from an ONNX graph, and the time that it takes at the limits of a machine.

Count the original network, as a plain export writes it: a graph that was simplified leaves work out, and would look
farther from the limit the more it leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from ddpm_deploy.bench.limits import Limits

Shape = tuple[int, ...]
COMPUTE, MEMORY = "compute", "memory"
ITEM_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1}
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"})
UNCOUNTED = frozenset({"Einsum", "LSTM", "GRU", "RNN", "Scan", "Loop", "If"})  # would be missed without a word


@dataclass(frozen=True)
class Work:
    """Of one forward at a batch. flops: two for each multiplication with its addition, by operator.

    weight_bytes: each constant once. edge_bytes: inputs and outputs of the graph. activation_bytes: what is written and
    read between nodes if each runs by itself.
    """

    batch: int
    flops_by_op: Mapping[str, int]
    weight_bytes: int
    edge_bytes: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """All products together; sums, norms and activations are not counted, as is the custom."""
        return sum(self.flops_by_op.values())

    @property
    def bytes_lower(self) -> int:
        """What must move even if everything between input and output stays in the caches."""
        return self.weight_bytes + self.edge_bytes

    @property
    def bytes_upper(self) -> int:
        """What moves where nothing is fused: every node reads its inputs from memory and writes its outputs there."""
        return self.bytes_lower + self.activation_bytes


@dataclass(frozen=True)
class TimeAtLimit:
    """The least time that a forward can take; bound: "compute" or "memory", whichever is the longer."""

    seconds: float
    bound: str


def count_work(model: bytes, batch: int = 1, axes: Mapping[str, int] | None = None) -> Work:
    """Count a denoiser graph at a batch.

    axes: sizes of other free axes by name, such as H and W. ValueError where a shape cannot be inferred, or for
    operators that are not counted.
    """
    graph = _inferred(onnx.load_model_from_string(model), batch, axes or {})
    tensors = _Tensors.of(graph)
    flops: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in UNCOUNTED:
            raise ValueError(f"graph: got {node.op_type} {node.name!r}, whose work is not counted; export a denoiser")
        if node.op_type in FLOPS:
            flops[node.op_type] += FLOPS[node.op_type](node, tensors)
    edges = [*graph.input, *graph.output]
    return Work(
        batch=batch,
        flops_by_op=dict(flops),
        weight_bytes=sum(tensors.size_bytes(name) for name in tensors.stored),
        edge_bytes=sum(tensors.size_bytes(value.name) for value in edges if value.name not in tensors.constant),
        activation_bytes=_between(graph, tensors) - sum(tensors.size_bytes(value.name) for value in graph.output),
    )


def time_at_limit(work: Work, limits: Limits, precision: str) -> TimeAtLimit:
    """The roofline of Williams, Waterman and Patterson (2009): the longer of compute and memory traffic.

    precision: that the row computes in; weights then count at its size, while inputs and outputs stay as they are.
    Weights that fit into the last-level cache stay there from call to call, and then memory is no bound.
    """
    if precision not in limits.products:
        have = ", ".join(limits.products)
        raise ValueError(f"precision: got {precision!r}, expected one of {have}; measure its limit first")
    moved = work.weight_bytes * ITEM_BYTES[precision] // ITEM_BYTES["fp32"] + work.edge_bytes
    compute_s = work.flops / (limits.products[precision].value * 1e9)
    cached = limits.cache_bytes is not None and moved <= limits.cache_bytes
    memory_s = 0.0 if cached else moved / (limits.bandwidth.value * 1e9)
    return TimeAtLimit(max(compute_s, memory_s), COMPUTE if compute_s >= memory_s else MEMORY)


def percent_of_limit(seconds: float, work: Work, limits: Limits, precision: str) -> tuple[float, str]:
    """(percent, which bound): how near a forward of `seconds` comes; over 100 where its graph leaves work out."""
    limit = time_at_limit(work, limits, precision)
    return 100 * limit.seconds / seconds, limit.bound


@dataclass(frozen=True)
class _Tensors:
    """stored: constants that some node reads. constant: these and all that is computed from them alone."""

    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    stored: frozenset[str]
    constant: frozenset[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Tensors:
        values = [*graph.input, *graph.value_info, *graph.output]
        shapes = {value.name: _shape(value) for value in values}
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        read = {name for node in graph.node for name in node.input}
        weights = {tensor.name for tensor in graph.initializer} | {
            node.output[0] for node in graph.node if node.op_type == "Constant"
        }
        return cls(shapes, types, frozenset(weights & read), _constants(graph, weights))

    def shape(self, name: str) -> Shape:
        """ValueError where it is not known."""
        shape = self.shapes.get(name)
        if shape is None or min(shape, default=1) < 0:
            raise ValueError(f"graph: the shape of {name!r} cannot be inferred; export with a static batch")
        return shape

    def size_bytes(self, name: str) -> int:
        """Of a tensor at the graph's own dtype."""
        return math.prod(self.shape(name)) * helper.tensor_dtype_to_np_dtype(self.types[name]).itemsize


def _inferred(model: onnx.ModelProto, batch: int, axes: Mapping[str, int]) -> onnx.GraphProto:
    """The graph with every shape written down, the first free axis of each input being the batch."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            _fix(value, batch, axes)
    del model.graph.value_info[:]
    for value in model.graph.output:  # inferred anew, as symbols may stand there
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, data_prop=True).graph


def _fix(value: onnx.ValueInfoProto, batch: int, axes: Mapping[str, int]) -> None:
    for position, axis in enumerate(value.type.tensor_type.shape.dim):
        if axis.HasField("dim_value"):
            continue
        if position and axis.dim_param not in axes:
            raise ValueError(f"axes: got no size for {axis.dim_param!r} of {value.name!r}; give one by that name")
        axis.dim_value = axes[axis.dim_param] if position else batch


def _shape(value: onnx.ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return (-1,)
    return tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)


def _constants(graph: onnx.GraphProto, weights: set[str]) -> frozenset[str]:
    """Also what is computed from constants alone, as a runtime does once and for all; nodes are sorted."""
    found = set(weights)
    for node in graph.node:
        given = [name for name in node.input if name]
        if given and found.issuperset(given):
            found.update(node.output)
    return frozenset(found)


def _between(graph: onnx.GraphProto, tensors: _Tensors) -> int:
    """Bytes of activations that nodes read and write; views and constants move nothing."""
    edges = {value.name for value in graph.input}
    seen: set[str] = set()
    total = 0
    for node in graph.node:
        if node.op_type in VIEWS or not tensors.constant.isdisjoint(node.output):
            continue
        for name in filter(None, (*node.input, *node.output)):
            if name in tensors.constant or (name in edges and name not in seen):
                seen.add(name)  # the first read of an input is counted with the inputs
                continue
            total += tensors.size_bytes(name)
    return total


Count = Callable[[onnx.NodeProto, _Tensors], int]


def _convolution(weight: int) -> Count:
    """Each output value takes one product with each weight of its channel. weight: which input holds them."""
    return lambda node, tensors: (
        2 * math.prod(tensors.shape(node.output[0])) * math.prod(tensors.shape(node.input[weight])[1:])
    )


def _transposed(node: onnx.NodeProto, tensors: _Tensors) -> int:
    """Each input value takes one product with each weight of its channel."""
    x, weight = (tensors.shape(name) for name in node.input[:2])
    return 2 * math.prod(x) * math.prod(weight[1:])


def _gemm(node: onnx.NodeProto, tensors: _Tensors) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = tensors.shape(node.input[0])[0 if transposed else 1]
    return 2 * math.prod(tensors.shape(node.output[0])) * inner


def _product(node: onnx.NodeProto, tensors: _Tensors) -> int:
    return 2 * math.prod(tensors.shape(node.output[0])) * tensors.shape(node.input[0])[-1]


def _attention(node: onnx.NodeProto, tensors: _Tensors) -> int:
    """Queries with keys, and weights with values: every value of Q and of the output meets each position once."""
    positions = tensors.shape(node.input[1])[-2]
    return 2 * positions * sum(math.prod(tensors.shape(name)) for name in (node.input[0], node.output[0]))


FLOPS: dict[str, Count] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Attention": _attention,
}
