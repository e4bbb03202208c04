"""Reduced precision on any CPU: the same graph in float32, with every reduced tensor rounded where it is stored.

This is what tensor cores do: they multiply rounded numbers, add the products in float32 and round the sum once. So a
bf16 or fp16 graph can be judged on a machine that has no kernels for it. What is not emulated is the order of the
sums, and runtimes that keep a wider number between fused operators, whose errors are smaller.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.export.anatomy import lift_constants
from ddpm_deploy.export.half import tensor_types
from ddpm_deploy.export.weights import copied

REDUCED = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32; tensors keep their names. A graph without reduced tensors is given back."""
    if not REDUCED.intersection(tensor_types(model).values()):
        return model
    out = copied(model)
    graph = out.graph
    lift_constants(graph)
    types = tensor_types(out)
    for tensor in graph.initializer:
        if tensor.data_type in REDUCED:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = [part for node in graph.node for part in _rounded(node, types)]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type in REDUCED:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return out


def _rounded(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """The node, followed by a rounding of each of its reduced outputs."""
    node = onnx.NodeProto.FromString(node.SerializeToString())
    parts = [node]
    for k, name in enumerate(node.output):
        if (kind := types.get(name)) in REDUCED:
            node.output[k] = f"{name}:wide"
            parts.append(helper.make_node("Cast", [f"{name}:wide"], [f"{name}:stored"], f"{name}:round", to=kind))
            parts.append(helper.make_node("Cast", [f"{name}:stored"], [name], f"{name}:widen", to=TensorProto.FLOAT))
    if node.op_type == "Cast" and node.output[0].endswith(":wide"):
        for attribute in node.attribute:
            attribute.i = TensorProto.FLOAT if attribute.name == "to" else attribute.i
    return parts
