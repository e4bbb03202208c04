"""Shape arithmetic out of the graph: where only the batch is free, every target shape is a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def fix_reshapes(model: onnx.ModelProto) -> None:
    """Give each Reshape whose target has at most one free axis a constant target, and drop what it needed before.

    The exporter writes the target as Shape-Gather-Concat chains, or as the Shape of another tensor.
    """
    graph = model.graph
    targets = {value.name: _target(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    constant = {tensor.name for tensor in graph.initializer}
    shape_of = {node.output[0]: node.input[0] for node in graph.node if _is_whole_shape(node)}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in constant:
            target = targets.get(node.output[0]) or targets.get(shape_of.get(node.input[1], ""))
            if target is not None:
                name = f"{node.output[0]}_target"
                graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
                node.input[1] = name
    drop_unused(graph)


def _is_whole_shape(node: onnx.NodeProto) -> bool:
    return node.op_type == "Shape" and all(a.name == "start" and a.i == 0 for a in node.attribute)


def _target(value: onnx.ValueInfoProto) -> list[int] | None:
    """The shape with -1 for its free axis; None where it is not known or has several free axes."""
    axes = value.type.tensor_type.shape.dim
    if not axes or any(axis.dim_value <= 0 and not axis.dim_param for axis in axes):
        return None
    target = [-1 if axis.dim_param else axis.dim_value for axis in axes]
    return target if target.count(-1) <= 1 else None


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, weights and type notes that no output depends on."""
    used = {output.name for output in graph.output}
    for node in reversed(graph.node):  # nodes are sorted: a consumer comes after its producers
        if used.intersection(node.output):
            used.update(node.input)
    _keep(graph.node, lambda node: used.intersection(node.output))
    _keep(graph.initializer, lambda tensor: tensor.name in used)
    _keep(graph.value_info, lambda value: value.name in used)


def _keep(field: Any, wanted: Callable[[Any], object]) -> None:
    """Remove the other messages where they are: putting some into a field copies them, and weights may be large."""
    for i in reversed(range(len(field))):
        if not wanted(field[i]):
            del field[i]
