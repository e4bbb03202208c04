"""The first operator with a NaN or an infinity is named, in every precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from digits_denoiser import calibration, graph_of, model, states
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.export.half import to_half
from ddpm_deploy.export.nonfinite import first_nonfinite
from ddpm_deploy.export.quantise import quantise
from ddpm_deploy.export.targets import ONNXRUNTIME_INT8

PRECISIONS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp32": lambda graph: graph,
    "fp16": lambda graph: to_half(graph, "fp16"),
    "bf16": lambda graph: to_half(graph, "bf16"),
    "int8": lambda graph: quantise(graph, calibration()[:4], form=ONNXRUNTIME_INT8),
}
EYE = np.eye(3, dtype=np.float32)
FEEDS = {"x": np.full((2, 3), 300.0, np.float32), "t": np.zeros(2, np.float32)}


def with_weight(name: str, factor: float) -> onnx.ModelProto:
    graph = onnx.ModelProto.FromString(model().SerializeToString())
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), name))
    return graph


def chain(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """x, the nodes from `b` to `c`, and products by the identity around them."""
    around = [
        helper.make_node("MatMul", ["x", "eye"], ["a"]),
        helper.make_node("MatMul", ["a", "eye"], ["b"]),
        *nodes,
        helper.make_node("MatMul", ["c", "eye"], ["prediction"]),
    ]
    return graph_of(around, {"eye": EYE, **weights}, (3,))


WEIGHT = "network.middle.block_in.conv_in.weight"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_healthy_network_has_none(precision: str) -> None:
    assert first_nonfinite(PRECISIONS[precision](model()), states(), 1) is None


def multiplying(graph: onnx.ModelProto, weight: str) -> str:
    """The node that reads a weight, as it is to be named."""
    (node,) = (node for node in graph.graph.node if weight in node.input)
    return f"{node.name} ({node.op_type}), output {node.output[0]}"


def test_a_huge_weight_overflows_in_fp16_where_it_is_multiplied_and_nowhere_in_bf16() -> None:
    graph = with_weight(WEIGHT, 3e4)
    assert first_nonfinite(graph, states(), 1) is None
    assert first_nonfinite(to_half(graph, "bf16"), states(), 1) is None
    assert first_nonfinite(to_half(graph, "fp16"), states(), 1) == multiplying(graph, WEIGHT)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_overflow_of_float32_is_named_where_it_begins(precision: str) -> None:
    graph = with_weight(WEIGHT, 1e38)
    assert first_nonfinite(PRECISIONS[precision](graph), states(), 1) == multiplying(graph, WEIGHT)


def test_a_nan_weight_is_named_in_an_int8_graph() -> None:
    graph = PRECISIONS["int8"](model())
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "network.conv_in.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(np.nan), bias.name))
    assert first_nonfinite(graph, states(), 1) == "node_conv2d (Conv), output conv2d"


def test_an_infinity_that_later_operators_hide_is_found_all_the_same() -> None:
    graph = chain(
        helper.make_node("Exp", ["b"], ["e"], "overflows"),
        helper.make_node("Neg", ["e"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["c"]),
    )
    assert first_nonfinite(graph, FEEDS, 1) == "overflows (Exp), output e"


def test_a_node_without_a_name_is_called_after_its_output() -> None:
    graph = chain(
        helper.make_node("Log", ["zero"], ["l"]),
        helper.make_node("Add", ["b", "l"], ["c"]),
        zero=np.zeros(3, np.float32),
    )
    assert first_nonfinite(graph, FEEDS, 1) == "Log:l (Log), output l"


def test_what_comes_out_of_a_scan_is_looked_at() -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Exp", ["row"], ["out"])],
        "body",
        [value("row", TensorProto.FLOAT, [3])],
        [value("out", TensorProto.FLOAT, [3])],
    )
    graph = chain(helper.make_node("Scan", ["b"], ["c"], "loop", body=body, num_scan_inputs=1))
    assert first_nonfinite(graph, FEEDS, 1) == "loop (Scan), output c"
    assert first_nonfinite(graph, {**FEEDS, "x": np.ones((2, 3), np.float32)}, 1) is None


def test_inputs_that_are_not_finite_are_no_fault_of_the_graph() -> None:
    with pytest.raises(ValueError, match=r"feeds\['x'\]: expected finite numbers"):
        first_nonfinite(model(), {**states(), "x": np.full((5, 1, 8, 8), np.nan, np.float32)}, 1)


def test_the_graph_given_is_left_as_it_is() -> None:
    before = model().SerializeToString()
    first_nonfinite(model(), states(), 1)
    assert model().SerializeToString() == before
