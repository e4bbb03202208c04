"""fp16 and bf16 graphs: what is reduced, what stays float32, and how far the samples move."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import onnx
import pytest
from digits_denoiser import graph_of, measured, model, openvino_run, ort_run, relative, states
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.emulate import emulate
from ddpm_deploy.export.half import tensor_types, to_half
from ddpm_deploy.parity.budget import budget_for

REDUCED = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
BOTH = pytest.mark.parametrize("precision", REDUCED)
EYE = np.eye(4, dtype=np.float32)


def by_type(graph: onnx.ModelProto, *op_types: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type in op_types]


def between_products(*nodes: onnx.NodeProto, weights: dict | None = None, opset: int = 18) -> onnx.ModelProto:
    """x, three products by the identity, and the nodes between the second and the third: from `b` to `c`."""
    around = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], "second"),
        *nodes,
        helper.make_node("MatMul", ["c", "w2"], ["d"], "third"),
        helper.make_node("MatMul", ["d", "w3"], ["prediction"], "last"),
    ]
    return graph_of(around, {"w0": EYE, "w1": EYE, "w2": EYE, "w3": EYE, **(weights or {})}, (4,), opset)


@BOTH
def test_steps_and_samples_of_a_trained_network_are_within_budget(precision: str) -> None:
    figures = measured(to_half(model(), precision))
    assert figures.failures(budget_for(precision)) == []
    assert figures.rms.max() > 1e-5  # it was rounded at all


def test_bf16_is_about_eight_times_as_coarse_as_fp16() -> None:
    fp16, bf16 = (measured(to_half(model(), precision), 12).rms.mean() for precision in ("fp16", "bf16"))
    assert 5 < bf16 / fp16 < 13


@BOTH
def test_sensitive_parts_are_float32_and_the_other_weights_are_reduced(precision: str) -> None:
    graph = to_half(model(), precision)
    types = tensor_types(graph)
    floats = by_type(graph, "InstanceNormalization", "Softmax", "Sin", "Cos")
    assert len(floats) == 27
    convolutions, products = by_type(graph, "Conv"), by_type(graph, "Gemm")
    floats += [convolutions[0], convolutions[-1], *products[:2]]
    for node in floats:
        assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    for node in (*convolutions[1:-1], *products[2:], *by_type(graph, "MatMul")):
        assert {types[name] for name in (*node.input, *node.output)} == {REDUCED[precision]}, node.name


@BOTH
def test_the_scale_and_shift_of_a_group_normalisation_are_float32_too(precision: str) -> None:
    graph = to_half(model(), precision)
    types = tensor_types(graph)
    readers = {name: node for node in graph.graph.node for name in node.input}
    for node in by_type(graph, "InstanceNormalization"):
        reshape = readers[node.output[0]]
        scaled = readers[reshape.output[0]]
        assert [n.op_type for n in (reshape, scaled)] == ["Reshape", "BatchNormalization"]
        assert types[scaled.output[0]] == TensorProto.FLOAT


@BOTH
def test_inputs_and_outputs_keep_their_names_and_types_and_the_graph_is_valid(precision: str) -> None:
    graph = to_half(model(), precision)
    onnx.checker.check_model(graph, full_check=True)
    assert list(graph.graph.input) == list(model().graph.input)
    assert list(graph.graph.output) == list(model().graph.output)
    assert graph.ByteSize() < 0.6 * model().ByteSize()


@BOTH
def test_casts_stand_only_where_the_type_changes(precision: str) -> None:
    graph = to_half(model(), precision)
    types, casts = tensor_types(graph), by_type(graph, "Cast")
    wanted = 2 * (21 + 4) + 4  # in and out of the normalisations and softmaxes, and the keys of the attentions
    assert len(casts) == wanted
    assert len({node.input[0] for node in casts}) == wanted  # one Cast for all who read a tensor
    made = {name for node in casts for name in node.output}
    for node in casts:
        assert node.input[0] not in made
        assert {types[node.input[0]], types[node.output[0]]} == {TensorProto.FLOAT, REDUCED[precision]}


def test_the_model_given_is_left_as_it_is() -> None:
    before = model().SerializeToString()
    to_half(model(), "fp16")
    assert model().SerializeToString() == before


def test_bf16_is_written_at_the_first_opset_whose_convolution_has_it() -> None:
    assert {precision: to_half(model(), precision).opset_import[0].version for precision in REDUCED} == {
        "fp16": 18,
        "bf16": 22,
    }


def test_a_weight_that_overflows_is_refused_by_its_name() -> None:
    graph = between_products(helper.make_node("MatMul", ["b", "huge"], ["c"]), weights={"huge": EYE * 7e4})
    with pytest.raises(ExportError, match=r"huge: got a weight of 7e\+04 .* at most 6.55e\+04 for fp16; use bf16"):
        to_half(graph, "fp16")
    to_half(graph, "bf16")
    graph = between_products(helper.make_node("MatMul", ["b", "huge"], ["c"]), weights={"huge": EYE * 3.4e38})
    with pytest.raises(ExportError, match=r"huge: got a weight of 3.4e\+38 .* for bf16; use fp32"):
        to_half(graph, "bf16")


def test_subnormal_weights_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    graph = between_products(helper.make_node("MatMul", ["b", "small"], ["c"]), weights={"small": EYE * 3e-5})
    with caplog.at_level(logging.DEBUG, "ddpm_deploy"):
        to_half(graph, "fp16")
    assert "small: 4 of 16 weights are subnormal in fp16" in caplog.text


@pytest.mark.parametrize("guard", [1e-12, 1e6])
def test_a_constant_that_fp16_does_not_have_keeps_its_operator_in_float32(guard: float) -> None:
    node = helper.make_node("Add", ["b", "guard"], ["c"], "guarded")
    graph = between_products(node, weights={"guard": np.float32(guard)})
    types = tensor_types(to_half(graph, "fp16"))
    assert (types["guard"], types["c"], types["b"]) == (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16)


def test_an_operator_that_nobody_listed_stays_float32() -> None:
    graph = between_products(helper.make_node("Exp", ["b"], ["c"]))
    types = tensor_types(to_half(graph, "fp16"))
    assert (types["b"], types["b_fp32"], types["c"]) == (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT)


def test_what_stands_alone_between_float32_operators_is_not_cast_forth_and_back() -> None:
    names = {"Exp": ("b", "e"), "Neg": ("e", "n"), "Log": ("n", "c")}
    nodes = [helper.make_node(op_type, [source], [target]) for op_type, (source, target) in names.items()]
    assert len(by_type(to_half(between_products(*nodes), "fp16"), "Cast")) == 4  # around the run, and at both ends


def test_a_shape_is_read_without_a_cast() -> None:
    nodes = [helper.make_node("Shape", ["b"], ["s"]), helper.make_node("Reshape", ["b", "s"], ["c"])]
    (shape,) = by_type(to_half(between_products(*nodes), "fp16"), "Shape")
    assert list(shape.input) == ["b"]


def test_a_group_normalisation_operator_stays_float32() -> None:
    ones = np.ones(4, np.float32)
    node = helper.make_node("GroupNormalization", ["b", "scale", "bias"], ["c"], num_groups=2)
    graph = between_products(node, weights={"scale": ones, "bias": ones}, opset=21)
    types = tensor_types(to_half(graph, "fp16"))
    assert (types["scale"], types["b"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)


@BOTH
def test_an_attention_operator_has_its_softmax_in_float32(precision: str) -> None:
    nodes = [
        helper.make_node("Reshape", ["b", "heads"], ["q"]),
        helper.make_node("Attention", ["q", "q", "q"], ["y"]),
        helper.make_node("Reshape", ["y", "flat"], ["c"]),
    ]
    shapes = {"heads": np.array([-1, 1, 2, 2]), "flat": np.array([-1, 4])}
    graph = between_products(*nodes, weights=shapes, opset=23)
    (attention,) = by_type(to_half(graph, precision), "Attention")
    assert {a.name: a.i for a in attention.attribute} == {"softmax_precision": TensorProto.FLOAT}
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), "t": np.zeros(3, np.float32)}
    assert 0 < relative(ort_run(emulate(to_half(graph, precision)), feeds), ort_run(graph, feeds)) < 1e-2


def test_time_is_never_rounded_before_its_sine() -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["t", "last"], ["column"]),
        helper.make_node("Sin", ["column"], ["wave"]),
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Mul", ["wave", "gain"], ["scaled"]),
        helper.make_node("Add", ["a", "scaled"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["prediction"]),
    ]
    weights = {"w0": EYE, "w1": EYE, "w2": EYE, "last": np.array([1]), "gain": np.float32(3)}
    types = tensor_types(to_half(graph_of(nodes, weights, (4,)), "fp16"))
    assert {types[name] for name in ("column", "wave", "scaled", "gain")} == {TensorProto.FLOAT}
    assert types["c"] == TensorProto.FLOAT16


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision: got 'fp8', expected one of fp16, bf16"):
        to_half(model(), "fp8")


# -- the emulation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_the_emulation_rounds_inputs_weights_and_results_as_numpy_does(precision: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((4, 4)).astype(np.float32)
    graph = to_half(between_products(helper.make_node("MatMul", ["b", "m"], ["c"]), weights={"m": matrix}), precision)
    x = rng.standard_normal((64, 4)).astype(np.float32)

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype).astype(np.float32)

    expected = rounded(rounded(x) @ rounded(matrix))
    np.testing.assert_array_equal(ort_run(emulate(graph), {"x": x, "t": np.zeros(64, np.float32)}), expected)


def test_an_emulated_overflow_is_not_finite() -> None:
    graph = to_half(between_products(helper.make_node("Add", ["b", "b"], ["c"])), "fp16")
    got = ort_run(emulate(graph), {"x": np.full((1, 4), 4e4, np.float32), "t": np.zeros(1, np.float32)})
    assert not np.isfinite(got).any()


def test_onnxruntime_computes_the_fp16_graph_as_well_as_the_emulation_says() -> None:
    graph, feeds = to_half(model(), "fp16"), states()
    truth = ort_run(model(), feeds)
    own, emulated = relative(ort_run(graph, feeds), truth), relative(ort_run(emulate(graph), feeds), truth)
    assert 0 < own < 2 * emulated < 4e-3


def test_a_float32_graph_is_emulated_by_itself() -> None:
    np.testing.assert_array_equal(ort_run(emulate(model()), states()), ort_run(model(), states()))


@BOTH
def test_openvino_reads_and_runs_the_graph(precision: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    graph, feeds = to_half(model(), precision), states()
    truth = ort_run(model(), feeds)
    assert 0 < relative(openvino_run(graph)(feeds), truth) < 2 * relative(ort_run(emulate(graph), feeds), truth)


def test_weights_are_rounded_to_nearest() -> None:
    graph = to_half(model(), "bf16")
    halves = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == TensorProto.BFLOAT16}
    wide = {tensor.name: numpy_helper.to_array(tensor) for tensor in model().graph.initializer}
    assert len(halves) > 50
    for name, half in halves.items():
        original = wide[name.removesuffix("_bf16")]
        np.testing.assert_array_equal(half, original.astype(ml_dtypes.bfloat16))
        assert np.all(np.abs(half.astype(np.float32) - original) <= np.abs(original) * 2.0**-8)
