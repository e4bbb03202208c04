"""The same network in fewer or cheaper operators, as exact algebra on its weights.

What each pass brings on ONNX Runtime's CPU provider is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ddpm_deploy.export.tidy import drop_unused

Array = NDArray[Any]
UPSAMPLING = {"mode": b"nearest", "nearest_mode": b"floor", "coordinate_transformation_mode": b"asymmetric"}
PLAIN_GEMM = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
DEFAULTS = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
PLAIN_CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}


class Surgeon:
    """A graph under change: its constants, who reads what, and the nodes that take the place of others."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._replacements: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer, or None for anything else."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def known(self, name: str) -> Array:
        """The value of an initializer that was seen to be one."""
        value = self.constant(name)
        assert value is not None
        return value

    def add_constant(self, name: str, value: Array) -> str:
        """Add an initializer and give its name."""
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def sole_reader(self, node: onnx.NodeProto, op: str) -> onnx.NodeProto | None:
        """The one node that reads the output of this one, if it is of that kind."""
        readers = self._readers.get(node.output[0], [])
        alone = len(readers) == 1 and readers[0].op_type == op and node.output[0] not in self._outputs
        return readers[0] if alone else None

    def replace(self, node: onnx.NodeProto, by: Iterable[onnx.NodeProto]) -> None:
        """Put these nodes in the place of one; what nobody reads any more goes in `finish`."""
        self._replacements[node.output[0]] = list(by)

    def finish(self) -> None:
        """Carry the replacements out."""
        nodes = [new for old in self.graph.node for new in self._replacements.get(old.output[0], [old])]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        drop_unused(self.graph)


def merge_projections(graph: onnx.GraphProto) -> None:
    """Project the time embedding into all blocks by one product: one node instead of two for each block."""
    surgeon = Surgeon(graph)
    groups: dict[tuple[str, ...], list[tuple[onnx.NodeProto, onnx.NodeProto]]] = {}
    for node in graph.node:
        after = surgeon.sole_reader(node, "Unsqueeze") if _is_projection(node, surgeon) else None
        axes = None if after is None else surgeon.constant(after.input[1])
        if after is not None and axes is not None and (axes > 1).all():  # channels stay axis 1
            groups.setdefault((node.input[0], str(axes)), []).append((node, after))
    for pairs in groups.values():
        if len(pairs) > 1:
            _merge(surgeon, pairs)
    surgeon.finish()


def scale_by_batch_norm(graph: onnx.GraphProto) -> None:
    """Scale and shift of a group normalisation in one pass over the picture instead of two."""
    surgeon = Surgeon(graph)
    for node in graph.node:
        if node.op_type != "InstanceNormalization":
            continue
        chain = _chain(surgeon, node, "Reshape", "Mul", "Add")
        if chain is None:
            continue
        shape, scaled, shifted = chain
        target = surgeon.constant(shape.input[1])
        scale, shift = (_per_channel(surgeon, n, own.output[0]) for n, own in ((scaled, shape), (shifted, scaled)))
        if scale is None or shift is None or target is None or target.size < 2:
            continue
        if len(scale) == len(shift) == target[1]:
            surgeon.replace(shifted, [_batch_norm(surgeon, shape.output[0], shifted.output[0], scale, shift)])
    surgeon.finish()


def upsample_by_phases(graph: onnx.GraphProto) -> None:
    """Doubling the pixels and a 3x3 convolution as four 2x2 ones of the small picture, one for each phase.

    Of the nine taps several fall on copies of one pixel: their weights add up to four, 16 products a pixel, not 36.
    """
    surgeon = Surgeon(graph)
    for node in graph.node:
        if node.op_type != "Resize" or not _doubles(surgeon, node):
            continue
        conv = surgeon.sole_reader(node, "Conv")
        weight = None if conv is None else surgeon.constant(conv.input[1])
        if conv is not None and weight is not None and _has(conv, PLAIN_CONV):
            surgeon.replace(conv, _phases(surgeon, node.input[0], conv, weight))
    surgeon.finish()


def _is_projection(node: onnx.NodeProto, surgeon: Surgeon) -> bool:
    if node.op_type != "Gemm" or len(node.input) != 3 or not _has(node, PLAIN_GEMM):
        return False
    weight, bias = (surgeon.constant(name) for name in node.input[1:])
    return weight is not None and bias is not None and bias.shape == weight.shape[:1]


def _merge(surgeon: Surgeon, pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]]) -> None:
    first, unsqueeze = pairs[0]
    name = f"{first.output[0]}_merged"
    weights = [surgeon.known(node.input[1]) for node, _ in pairs]
    biases = [surgeon.known(node.input[2]) for node, _ in pairs]
    weight = surgeon.add_constant(f"{name}_weight", np.concatenate(weights))
    bias = surgeon.add_constant(f"{name}_bias", np.concatenate(biases))
    sizes = surgeon.add_constant(f"{name}_sizes", np.array([len(bias) for bias in biases], np.int64))
    outputs = [after.output[0] for _, after in pairs]
    product = helper.make_node("Gemm", [first.input[0], weight, bias], [name], name=name, transB=1)
    picture = helper.make_node("Unsqueeze", [name, unsqueeze.input[1]], [f"{name}_4d"], name=f"{name}_4d")
    parts = helper.make_node("Split", [f"{name}_4d", sizes], outputs, name=f"{name}_split", axis=1)
    surgeon.replace(first, [product, picture, parts])
    for _, after in pairs:
        surgeon.replace(after, [])


def _chain(surgeon: Surgeon, node: onnx.NodeProto, *ops: str) -> list[onnx.NodeProto] | None:
    """The nodes of these kinds that follow one another, each the only reader of the one before."""
    found = []
    for op in ops:
        after = surgeon.sole_reader(node, op)
        if after is None:
            return None
        found.append(after)
        node = after
    return found


def _per_channel(surgeon: Surgeon, node: onnx.NodeProto, stream: str) -> Array | None:
    """The constant (C, 1, 1) operand of a Mul or Add as (C,)."""
    (other,) = [name for name in node.input if name != stream] or [""]
    value = surgeon.constant(other)
    return None if value is None or value.ndim not in (3, 4) or value.size != value.shape[-3] else value.reshape(-1)


def _batch_norm(surgeon: Surgeon, stream: str, output: str, scale: Array, shift: Array) -> onnx.NodeProto:
    zeros, ones = np.zeros_like(scale), np.ones_like(scale)
    parts = {"weight": scale, "bias": shift, "mean": zeros, "variance": ones}  # quantisers name theirs "..._scale"
    names = [surgeon.add_constant(f"{output}_{part}", value) for part, value in parts.items()]
    return helper.make_node("BatchNormalization", [stream, *names], [output], name=output, epsilon=0.0)


def _doubles(surgeon: Surgeon, node: onnx.NodeProto) -> bool:
    scales = surgeon.constant(node.input[2]) if len(node.input) == 3 else None
    return scales is not None and scales.tolist() == [1, 1, 2, 2] and _has(node, UPSAMPLING)


def _phases(surgeon: Surgeon, source: str, conv: onnx.NodeProto, weight: Array) -> list[onnx.NodeProto]:
    """The convolutions of the four phases, put together pixel by pixel."""
    name, nodes = conv.output[0], []
    for row in (0, 1):
        for column in (0, 1):
            part = f"{name}_phase{row}{column}"
            kernel = surgeon.add_constant(f"{part}_kernel", _phase_kernel(weight, row, column))
            inputs, pads = [source, kernel, *conv.input[2:]], [1 - row, 1 - column, row, column]
            nodes.append(helper.make_node("Conv", inputs, [part], name=part, kernel_shape=[2, 2], pads=pads))
    parts = [node.output[0] for node in nodes]
    nodes.append(helper.make_node("Concat", parts, [f"{name}_phases"], name=f"{name}_phases", axis=1))
    nodes.append(helper.make_node("DepthToSpace", [f"{name}_phases"], [name], name=name, blocksize=2, mode="DCR"))
    return nodes


def _phase_kernel(weight: Array, row: int, column: int) -> Array:
    """(O, I, 3, 3) to (O, I, 2, 2): taps 0 | 1, 2 fall on one pixel each in the even phase, 0, 1 | 2 in the odd one."""
    wide = weight.astype(np.float64)
    rows = np.stack([wide[:, :, : 1 + row].sum(axis=2), wide[:, :, 1 + row :].sum(axis=2)], axis=2)
    cut = 1 + column
    kernel = np.stack([rows[..., :cut].sum(axis=3), rows[..., cut:].sum(axis=3)], axis=3)
    return kernel.astype(weight.dtype)


def _has(node: onnx.NodeProto, wanted: Mapping[str, object]) -> bool:
    found = _attributes(node)
    return all(found.get(name, DEFAULTS.get(name)) == value for name, value in wanted.items())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    read: Callable[[onnx.AttributeProto], Any] = helper.get_attribute_value
    return {attribute.name: read(attribute) for attribute in node.attribute}
