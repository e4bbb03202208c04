"""A denoiser graph in fp16 or bf16, its sensitive parts in float32.

An own pass, because onnxruntime's float16 converter knows no bf16, brackets every float32 node with casts of its own
instead of every run of them, and clips weights that do not fit where this one refuses them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import Anatomy, consumers, lift_constants, name_nodes, opset_of
from ddpm_deploy.export.weights import copied, is_large, without_values

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {precision: np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for precision, kind in TYPES.items()}
BF16_OPSET = 22
ONNX_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

NORMAL = {"fp16": (2.0**-14, 65504.0), "bf16": (2.0**-126, 2.0**128 - 2.0**120)}  # smallest and largest magnitude

ELEMENTWISE = frozenset({
    "Abs", "Add", "AveragePool", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max",
    "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum",
    "Swish", "Tanh", "Where",
})  # fmt: skip
MOVEMENT = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip

ANY_TYPE = frozenset({"Cast", "Shape", "Size"})  # read whatever there is

_log = logging.getLogger(__name__)


def to_half(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy that multiplies in "fp16" or "bf16"; inputs and outputs stay float32.

    In float32 stay: the first and last product and what lies beyond them, the time embedding, every operator that is
    neither a product nor elementwise (normalisation, softmax, reductions), the scale and shift behind an instance
    normalisation, and elementwise work that stands alone between such nodes or whose constants do not fit the type.
    A bf16 graph is raised to opset 22, the first whose convolution takes the type. Raises ExportError for a weight
    that overflows, or a product that has no such type.
    """
    if precision not in TYPES:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(TYPES)}")
    out = copied(model)
    if precision == "bf16":
        out = _raised(out, BF16_OPSET)
    lift_constants(out.graph)
    name_nodes(out.graph)
    _Halver(out, precision).run()
    return out


class _Halver:
    """One model on its way to a reduced precision."""

    def __init__(self, model: onnx.ModelProto, precision: str) -> None:
        self.graph, self.precision = model.graph, precision
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.types = tensor_types(model)
        self.readers = consumers(model.graph)
        self.slots = [self._slots(node) for node in model.graph.node]
        self.nodes: list[onnx.NodeProto] = []
        self.home: set[str] = set()  # tensors that their node makes in the reduced type
        self.copies: dict[tuple[str, bool], str] = {}
        self.subnormal = 0

    def run(self) -> None:
        half = self._chosen()
        for i, node in enumerate(self.graph.node):
            inputs, outputs = self.slots[i]
            for k, name in enumerate(node.input):
                if k in inputs if i in half else name in self.home and node.op_type not in ANY_TYPE:
                    node.input[k] = self._as(name, i in half, node)
            if i in half:
                self.home.update(node.output[k] for k in outputs)
                _softmax_in_float(node)
            self.nodes.append(node)
        self._write()

    # -- what may be reduced --------------------------------------------------------------------------------------

    def _chosen(self) -> set[int]:
        """The nodes that compute in the reduced type."""
        anatomy = Anatomy.of(self.graph)
        outputs = {value.name for value in self.graph.output}
        kept = anatomy.edges | anatomy.embedding | _affine(self.graph, self.weights, self.readers)
        half: set[int] = set()
        made: set[str] = set()
        for i, node in enumerate(self.graph.node):
            if i in kept or outputs.intersection(node.output) or not self._floats(i):
                continue
            if i in anatomy.products:
                self._require_type(i, node)
            elif not (node.op_type in ELEMENTWISE and self._fits(i)) and not (
                node.op_type in MOVEMENT and self.slots[i][1] and made.intersection(node.input)
            ):
                continue
            half.add(i)
            made.update(node.output)
        return self._joined(half, half & anatomy.products)

    def _joined(self, half: set[int], products: set[int]) -> set[int]:
        """What hangs together with a product through nodes of the reduced type; the rest would only be cast."""
        makers = {name: i for i in half for name in self.graph.node[i].output}
        reached, open_ = set(products), list(products)
        while open_:
            node = self.graph.node[open_.pop()]
            near = {makers[name] for name in node.input if name in makers}
            near.update(i for name in node.output for i in self.readers.get(name, ()) if i in half)
            open_ += near - reached
            reached |= near
        return reached

    def _floats(self, i: int) -> bool:
        """Whether the node makes float32 numbers, as far as ONNX can tell."""
        node = self.graph.node[i]
        known = all(name in self.types for name in node.input if name)
        return known and any(self.types.get(name) == TensorProto.FLOAT for name in node.output)

    def _require_type(self, i: int, node: onnx.NodeProto) -> None:
        if not self.slots[i][1]:
            raise ExportError(
                f"{node.name}: {node.op_type} takes no {self.precision} at opset {self.opsets.get(node.domain)}; "
                "trace the network at a newer opset, or stay with fp32"
            )

    def _fits(self, i: int) -> bool:
        """Whether the constants of an elementwise node survive the reduced type, and the opset has the type."""
        node, (inputs, outputs) = self.graph.node[i], self.slots[i]
        constants = (self.weights[node.input[k]] for k in inputs if node.input[k] in self.weights)
        return bool(outputs) and all(_survives(numpy_helper.to_array(c), DTYPES[self.precision]) for c in constants)

    def _slots(self, node: onnx.NodeProto) -> tuple[list[int], list[int]]:
        """Which inputs and outputs are float32 and may be of the reduced type, by the operator's own definition."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return [], []  # an operator of a runtime's own: left as it is
        wide = {c.type_param_str for c in schema.type_constraints if ONNX_NAMES[self.precision] in c.allowed_type_strs}

        def fitting(names: Iterable[str], formal: Iterable[onnx.defs.OpSchema.FormalParameter]) -> list[int]:
            listed = list(formal)
            return [
                k
                for k, name in enumerate(names)
                if self.types.get(name) == TensorProto.FLOAT and listed[min(k, len(listed) - 1)].type_str in wide
            ]

        return fitting(node.input, schema.inputs), fitting(node.output, schema.outputs)

    # -- rewriting ------------------------------------------------------------------------------------------------

    def _as(self, name: str, half: bool, node: onnx.NodeProto) -> str:
        """The tensor in the type wanted: itself, a converted weight, or behind the one Cast that all readers share."""
        if half == (name in self.home):
            return name
        if (name, half) not in self.copies:
            copy = f"{name}_{self.precision if half else 'fp32'}"
            self.copies[name, half] = copy
            if name in self.weights:
                self.graph.initializer.append(self._converted(self.weights[name], copy, node))
            else:
                to = TYPES[self.precision] if half else TensorProto.FLOAT
                self.nodes.append(helper.make_node("Cast", [name], [copy], f"cast:{copy}", to=to))
        return self.copies[name, half]

    def _converted(self, weight: TensorProto, name: str, node: onnx.NodeProto) -> TensorProto:
        array, (smallest, largest) = numpy_helper.to_array(weight), NORMAL[self.precision]
        with np.errstate(over="ignore"):
            reduced = array.astype(DTYPES[self.precision])
        if not np.isfinite(reduced.astype(np.float32)).all():
            raise ExportError(
                f"{weight.name}: got a weight of {np.abs(array).max():.4g} in {node.name}, expected at most "
                f"{largest:.4g} for {self.precision}; use {'bf16 or ' if self.precision == 'fp16' else ''}fp32"
            )
        subnormal = int(np.count_nonzero((array != 0) & (np.abs(array) < smallest)))
        if subnormal:
            self.subnormal += subnormal
            _log.debug("%s: %d of %d weights are subnormal in %s", weight.name, subnormal, array.size, self.precision)
        return numpy_helper.from_array(reduced, name)

    def _write(self) -> None:
        graph = self.graph
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
        weights = [tensor for tensor in graph.initializer if tensor.name in used]
        weights = [TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
        for field, kept in ((graph.node, nodes), (graph.initializer, weights)):
            del field[:]
            field.extend(kept)
        for value in graph.value_info:
            if value.name in self.home:
                value.type.tensor_type.elem_type = TYPES[self.precision]
        if self.subnormal:
            _log.info("%s: %d weights are subnormal; they keep fewer digits", self.precision, self.subnormal)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that ONNX can tell."""
    graph = onnx.shape_inference.infer_shapes(without_values(model)).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at this opset or a newer one."""
    written = opset_of(model)
    if written >= opset:
        return model
    if is_large(model):
        raise ExportError(f"bf16: got opset {written} and over 2 GB of weights, expected --opset {opset} or later")
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # of its own, for operators that have no conversion
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"bf16: cannot raise the graph from opset {written} to {opset}: {reason}") from error


def _affine(graph: onnx.GraphProto, weights: Iterable[str], readers: dict[str, list[int]]) -> set[int]:
    """The Reshape, Mul and Add that end a group normalisation written as an instance normalisation."""
    found: set[int] = set()
    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            name = node.output[0]
            while len(readers.get(name, ())) == 1:
                (i,) = readers[name]
                following = graph.node[i]
                scaling = following.op_type in ("Mul", "Add") and any(k in weights for k in following.input)
                if not scaling and following.op_type != "Reshape":
                    break
                found.add(i)
                name = following.output[0]
    return found


def _survives(constant: NDArray[np.generic], dtype: np.dtype[np.generic]) -> bool:
    """Whether no number becomes infinite; a lone one, such as the guard of a division, must not become zero either."""
    with np.errstate(over="ignore"):
        reduced = constant.astype(dtype).astype(np.float32)
    return bool(np.isfinite(reduced).all()) and (constant.size > 1 or bool(np.all((reduced != 0) == (constant != 0))))


def _softmax_in_float(node: onnx.NodeProto) -> None:
    if node.op_type == "Attention":
        kept = [a for a in node.attribute if a.name != "softmax_precision"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("softmax_precision", int(TensorProto.FLOAT))])
