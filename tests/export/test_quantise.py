"""int8 graphs: what is quantised, how far the samples move, and that integer sums are right on every CPU."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from digits_denoiser import (
    calibration,
    graph_of,
    manifest,
    measured,
    model,
    openvino_run,
    ort_run,
    relative,
    states,
)
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.calibration import calibration_feeds
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.export.quantise import activation_ranges, insert, layers, quantise
from ddpm_deploy.export.targets import ONNXRUNTIME_INT8, OPENVINO_INT8, TENSORRT_INT8, Int8
from ddpm_deploy.parity.budget import budget_for
from ddpm_deploy.parity.next_state import default_plan

ALL = (ONNXRUNTIME_INT8, OPENVINO_INT8, TENSORRT_INT8)
FORMS = pytest.mark.parametrize("form", ALL, ids=["onnxruntime", "openvino", "tensorrt"])


@pytest.fixture(scope="module")
def forms() -> dict[Int8, onnx.ModelProto]:
    ranges = activation_ranges(model(), calibration())
    return {form: insert(model(), ranges, form=form) for form in ALL}


def weights_of(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def makers(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.graph.node for name in node.output}


def quantised(graph: onnx.ModelProto) -> set[str]:
    made = makers(graph)
    dequantised = {name for name, node in made.items() if node.op_type == "DequantizeLinear"}
    return {n.name for n in graph.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in dequantised}


# -- the graph ----------------------------------------------------------------------------------------------------


@FORMS
def test_steps_and_samples_of_a_trained_network_are_within_budget(forms: dict, form: Int8) -> None:
    assert measured(forms[form]).failures(budget_for("int8")) == []


@FORMS
def test_all_convolutions_but_the_first_and_the_last_are_quantised(forms: dict, form: Int8) -> None:
    convolutions = [node.name for node in model().graph.node if node.op_type == "Conv"]
    assert list(layers(model())) == convolutions[1:-1]
    assert quantised(forms[form]) == set(layers(model()))


@FORMS
def test_normalisation_softmax_and_sums_read_no_rounded_input_of_a_layer(forms: dict, form: Int8) -> None:
    graph = forms[form]
    made = makers(graph)
    names = layers(model())
    outputs = {node.output[0] for node in graph.graph.node if node.name in names}
    for node in graph.graph.node:
        if node.op_type in ("Reshape", "Add", "Concat", "Softmax", "Gemm"):
            for source in (made[name] for name in node.input if name in made):
                if source.op_type == "DequantizeLinear":
                    assert made[source.input[0]].input[0] in outputs  # only the rounded output of a layer itself


@FORMS
def test_the_graph_is_valid_and_keeps_its_inputs_and_outputs(forms: dict, form: Int8) -> None:
    graph = forms[form]
    onnx.checker.check_model(graph, full_check=True)
    assert (list(graph.graph.input), list(graph.graph.output)) == (
        list(model().graph.input),
        list(model().graph.output),
    )
    assert graph.producer_name == model().producer_name
    assert graph.ByteSize() < 0.45 * model().ByteSize()


def test_the_form_for_tensorrt_is_symmetric_with_float32_biases_and_outputs(forms: dict) -> None:
    graph = forms[TENSORRT_INT8]
    weights = weights_of(graph)
    zero_points = [weights[n.input[2]] for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    assert {z.dtype for z in zero_points} == {np.dtype(np.int8)}
    assert not any(z.any() for z in zero_points)
    assert not any(w.dtype == np.int32 for w in weights.values())
    readers = {
        name: {n.name for n in graph.graph.node if name in n.input} for n in graph.graph.node for name in n.output
    }
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] not in weights:
            assert readers[node.output[0]] <= set(layers(model()))  # all others read the number itself
    assert max(np.abs(w.astype(int)).max() for w in weights.values() if w.dtype == np.int8 and w.ndim == 4) == 127


@pytest.mark.parametrize("form", [ONNXRUNTIME_INT8, OPENVINO_INT8], ids=["onnxruntime", "openvino"])
def test_the_forms_for_cpus_have_unsigned_activations_and_weights_of_seven_bits(forms: dict, form: Int8) -> None:
    weights = weights_of(forms[form])
    kernels = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert len(kernels) == len(layers(model()))
    assert max(np.abs(w.astype(int)).max() for w in kernels) == 64
    zero_points = [weights[n.input[2]] for n in forms[form].graph.node if n.op_type == "QuantizeLinear"]
    assert {z.dtype for z in zero_points} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("form", [OPENVINO_INT8, TENSORRT_INT8], ids=["openvino", "tensorrt"])
def test_what_layers_write_is_float_but_for_onnxruntime(forms: dict, form: Int8) -> None:
    def rounded(graph: onnx.ModelProto) -> set[str]:
        outputs = {node.output[0]: node.name for node in graph.graph.node if node.name in layers(model())}
        sources = {node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
        return {outputs[source] for source in sources if source in outputs}

    assert len(rounded(forms[ONNXRUNTIME_INT8])) == len(layers(model()))
    assert len(rounded(forms[form])) < len(layers(model())) / 4  # those that another layer reads at once


@FORMS
def test_weights_have_a_scale_for_every_channel(forms: dict, form: Int8) -> None:
    weights = weights_of(forms[form])
    for node in forms[form].graph.node:
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0], np.empty(0)).ndim == 4:
            assert weights[node.input[1]].shape == weights[node.input[0]].shape[:1]


def test_layers_may_be_left_in_float32() -> None:
    kept = layers(model())[3:7]
    graph = quantise(model(), calibration()[:4], form=ONNXRUNTIME_INT8, keep_float=kept)
    assert quantised(graph) == set(layers(model())) - set(kept)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_float: got 'node_magic', expected names of layers such as"):
        quantise(model(), calibration()[:2], form=ONNXRUNTIME_INT8, keep_float=["node_magic"])


def test_products_with_weights_are_layers_and_products_of_activations_are_not() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], "weighted"),
        helper.make_node("Gemm", ["b", "w", "bias"], ["c"], "biased"),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "d"], ["e"], "scores"),
        helper.make_node("MatMul", ["e", "c"], ["f"], "mixed"),
        helper.make_node("MatMul", ["f", "w"], ["prediction"], "last"),
    ]
    matrix = np.float32([[0.9, 0.1, 0, 0], [0, 1, 0.2, 0], [0.1, 0, 0.8, 0.3], [0, 0.2, 0, 0.7]])
    graph = graph_of(nodes, {"w": matrix, "bias": np.zeros(4, np.float32)}, (4,))
    assert layers(graph) == ("weighted", "biased")
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32), "t": np.zeros(8, np.float32)}
    for form in ALL:
        got = ort_run(quantise(graph, [feeds], form=form), feeds)
        assert 0 < relative(got, ort_run(graph, feeds)) < 0.05


def test_a_graph_with_nothing_to_quantise_is_refused() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["prediction"])]
    graph = graph_of(nodes, {"w": np.eye(4, dtype=np.float32)}, (4,))
    with pytest.raises(ExportError, match="int8: the graph has no product with weights"):
        quantise(graph, [{"x": np.zeros((1, 4), np.float32), "t": np.zeros(1, np.float32)}], form=ONNXRUNTIME_INT8)


def test_ranges_that_are_not_finite_are_refused() -> None:
    feeds = {name: array[:1] for name, array in calibration()[0].items()}
    feeds["x"] = np.full_like(feeds["x"], np.inf)
    with pytest.raises(ExportError, match="silu_2: got values from nan to nan in calibration"):
        quantise(model(), [feeds], form=ONNXRUNTIME_INT8)
    with pytest.raises(ValueError, match="calibration: got no feeds"):
        quantise(model(), [], form=ONNXRUNTIME_INT8)


# -- integer arithmetic on this CPU -------------------------------------------------------------------------------


@FORMS
def test_fused_integer_kernels_compute_what_the_graph_says(forms: dict, form: Int8) -> None:
    """Not to the bit: where a sum of another order falls on the other side of a rounding, all that follows differs."""
    truth = ort_run(model(), states())
    fused, literal = (ort_run(forms[form], states(), literal=literal) for literal in (False, True))
    assert 0 < relative(fused, truth) < 1.5 * relative(literal, truth)


def test_onnxruntime_fuses_every_layer_into_an_integer_convolution(forms: dict, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    graph = forms[ONNXRUNTIME_INT8].SerializeToString()
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    fused = [n for n in onnx.load(tmp_path / "optimised.onnx").graph.node if n.op_type == "QLinearConv"]
    assert len(fused) == len(layers(model()))


def test_the_largest_sums_do_not_saturate() -> None:
    """With weights of 8 bits this comes out at half on CPUs that add pairs of products in 16 bits."""
    channels = 64
    ones = np.ones((channels, channels, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "copy"], ["a"], "first"),
        helper.make_node("Conv", ["a", "ones"], ["b"], "middle"),
        helper.make_node("Conv", ["b", "copy"], ["prediction"], "last"),
    ]
    copy = np.eye(channels, dtype=np.float32)[:, :, None, None]
    graph = graph_of(nodes, {"copy": copy, "ones": ones}, (channels, 4, 4))
    feeds = {"x": np.ones((1, channels, 4, 4), np.float32), "t": np.zeros(1, np.float32)}
    got = ort_run(quantise(graph, [feeds], form=ONNXRUNTIME_INT8), feeds)
    np.testing.assert_allclose(got, channels, rtol=1e-2)


@FORMS
def test_openvino_runs_the_graph_within_budget(forms: dict, form: Int8) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from ddpm_deploy.parity.next_state import measure_file

    with evaluator(model(), 1) as reference:
        figures = measure_file(openvino_run(forms[form]), reference, manifest(), timesteps=12)
    assert figures.failures(budget_for("int8")) == []


def test_openvino_computes_every_layer_of_its_form_in_integers(forms: dict) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    graph = core.read_model(forms[OPENVINO_INT8].SerializeToString())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    layer_kinds = [str(kind["primitiveType"].value) for kind in kinds if kind["layerType"].value == "Convolution"]
    assert sum(kind.endswith("I8") for kind in layer_kinds) == len(layers(model()))


# -- a well-behaved library ---------------------------------------------------------------------------------------


def test_nothing_is_printed_logged_through_the_root_or_left_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handlers = list(logging.root.handlers)
    quantise(model(), calibration()[:2], form=ONNXRUNTIME_INT8)
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert list(tmp_path.iterdir()) == []


DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from digits_denoiser import calibration, model
from ddpm_deploy.export.quantise import quantise
from ddpm_deploy.export.targets import ONNXRUNTIME_INT8
graph = quantise(model(), calibration()[:4], form=ONNXRUNTIME_INT8)
print(hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest())
"""


def test_the_same_model_gives_the_same_bytes_in_every_process() -> None:
    graph = quantise(model(), calibration()[:4], form=ONNXRUNTIME_INT8)
    here = hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", DIGEST, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        assert done.stdout.strip() == here


# -- calibration --------------------------------------------------------------------------------------------------


def test_half_of_the_states_are_of_the_chain_and_half_of_the_default_solver() -> None:
    plan = default_plan(manifest())
    times = [float(feeds["t"][0]) for feeds in calibration()]
    chain, solver = times[:24], times[24:]
    assert len(times) == 48
    assert (max(chain), min(chain)) == (999, 0)
    assert max(np.diff(sorted(chain))) < 50  # every timestep is near one of them
    assert set(solver) == {float(np.float32(t)) for t in plan.t}


def test_states_are_of_one_sample_each_and_of_several_trajectories() -> None:
    assert all(feeds["x"].shape == (1, 1, 8, 8) and feeds["t"].shape == (1,) for feeds in calibration())
    first = [feeds["x"] for feeds in calibration() if feeds["t"][0] == 999]
    assert len({array.tobytes() for array in first}) > 1


def test_the_seed_alone_decides_the_states() -> None:
    with evaluator(model(), 1) as reference:
        same, other = (calibration_feeds(reference, manifest(), 8, seed) for seed in (0, 1))
        again = calibration_feeds(reference, manifest(), 8, 0)
    for a, b in zip(same, again, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
    assert not np.array_equal(same[0]["x"], other[0]["x"])


def test_conditions_go_with_their_sample() -> None:
    seen = []

    def reference(feeds: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(feeds["labels"])
        return feeds["x"] * 0 + feeds["labels"][:, None, None, None].astype(np.float32) / 10

    feeds = calibration_feeds(reference, manifest(), 30, conditions={"labels": np.array([5, 6, 7])})
    assert {int(f["labels"][0]) for f in feeds} == {5, 6, 7}
    assert all(f["labels"].shape == (1,) for f in feeds)
    assert all(set(labels.tolist()) == {5, 6, 7} for labels in seen)


def test_too_few_states_are_refused() -> None:
    with pytest.raises(ValueError, match="n: got 1, expected at least 2 feeds"):
        calibration_feeds(lambda feeds: feeds["x"], manifest(), 1)


def test_types_in_the_graph_are_the_ones_declared(forms: dict) -> None:
    for graph in forms.values():
        kinds = {tensor.data_type for tensor in graph.graph.initializer}
        assert kinds <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8}
