"""What an export writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from ddpm_deploy.bundle import read_bundle, read_onnx_manifest
from ddpm_deploy.export import export_module
from ddpm_deploy.reference import read_reference

GRAPH, SAMPLER = "denoiser.fp32.onnx", "sampler.fp32.onnxruntime-cpu.onnx"
WEIGHTS = "denoiser.fp32.torch.safetensors"


@pytest.fixture(scope="module")
def graph(exported: Path) -> Any:
    return onnx.load(exported / GRAPH)


@pytest.fixture(scope="module")
def session(exported: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(exported / GRAPH, options, providers=["CPUExecutionProvider"])


def feeds(batch: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    t = np.linspace(0, 39, batch).astype(np.float32)
    return {"x": x, "t": t, "labels": np.arange(batch) % 3}


def test_bundle_holds_graph_weights_and_reference(exported: Path) -> None:
    manifest = read_bundle(exported).manifest
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["bundle.json", GRAPH, SAMPLER, WEIGHTS, "reference.npz"]
    )
    assert [(f.path, f.role, f.precision, f.target, f.opset) for f in manifest.files] == [
        (GRAPH, "denoiser", "fp32", "onnx", 18),
        (SAMPLER, "sampler", "fp32", "onnxruntime-cpu", 18),
        (WEIGHTS, "denoiser", "fp32", "torch", None),
    ]
    assert (manifest.model.name, manifest.model.licence, manifest.variance) == ("labelled", "Apache-2.0", "small")
    assert manifest.model.provenance["weights"] == "random"
    assert manifest.model.provenance["exporter"]["torch"] == torch.__version__
    assert (manifest.defaults.solver, manifest.defaults.steps) == ("unipc", 12)


def test_parity_at_export_is_recorded_and_within_budget(exported: Path) -> None:
    parity = read_bundle(exported).manifest.files[0].parity
    assert parity is not None
    assert 0 < parity["relative_l2"] < 1e-5
    assert parity["timesteps"] == 12 + 40


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 33])
def test_batch_is_free_and_onnxruntime_agrees_with_torch(session: Any, labelled: Any, batch: int) -> None:
    network = copy.deepcopy(labelled).eval()
    given = feeds(batch)
    with torch.inference_mode():
        expected = network(*(torch.from_numpy(array) for array in given.values())).numpy()
    (got,) = session.run(["prediction"], given)
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_inputs_and_output_are_named_and_typed_as_the_contract_says(exported: Path, session: Any) -> None:
    file = read_bundle(exported).manifest.files[0]
    runtime = [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    assert runtime == [
        ("x", ["B", 3, 8, 8]),
        ("t", ["B"]),
        ("labels", ["B"]),
        ("prediction", ["B", 3, 8, 8]),
    ]
    assert runtime == [(spec.name, list(spec.shape)) for spec in (*file.inputs, *file.outputs)]
    assert [spec.dtype for spec in file.inputs] == ["float32", "float32", "int64"]


def test_graph_computes_no_shapes_at_run_time(graph: Any) -> None:
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"Shape", "Size", "Slice", "Expand", "Range", "ConstantOfShape", "If", "Loop"}
    assert len([node for node in graph.graph.node if node.op_type == "Gather"]) == 1  # the embedding of the labels


def test_every_weight_is_an_initializer_of_the_graph(graph: Any, labelled: Any) -> None:
    stored = sum(onnx.numpy_helper.to_array(tensor).size for tensor in graph.graph.initializer if tensor.data_type == 1)
    assert stored >= sum(parameter.numel() for parameter in labelled.parameters())
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.graph.initializer)
    assert not [node for node in graph.graph.node if node.op_type == "Constant"]


def test_graph_tells_nothing_of_the_machine_that_wrote_it(exported: Path, graph: Any) -> None:
    data = (exported / GRAPH).read_bytes()
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode(), b"pkg.torch"):
        assert trace not in data
    assert [entry.key for entry in graph.metadata_props] == ["ddpm_deploy"]


def test_lone_graph_carries_the_manifest(exported: Path) -> None:
    whole, alone = read_bundle(exported).manifest, read_onnx_manifest(exported / GRAPH)
    assert alone.files == whole.files[:1]
    for name in ("model", "sample_shape", "output", "prediction", "variance", "schedule", "clip", "conditions"):
        assert getattr(alone, name) == getattr(whole, name)
    assert (alone.reference, alone.network) == (None, None)


def test_torch_file_holds_the_weights(exported: Path, labelled: Any) -> None:
    stored = safetensors.torch.load((exported / WEIGHTS).read_bytes())
    expected = labelled.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_reference_is_reproduced_without_torch(exported: Path, session: Any) -> None:
    bundle = read_bundle(exported)
    assert bundle.manifest.reference is not None
    reference = read_reference(bundle.open_bytes(bundle.manifest.reference))
    assert (reference.t.max(), reference.t.min(), len(reference.t)) == (39, 0, 12)
    (got,) = session.run(None, {"x": reference.x, "t": reference.t, **reference.conditions})
    assert np.linalg.norm(got - reference.prediction) <= 1e-5 * np.linalg.norm(reference.prediction)

    run = reference.trajectory
    assert (run.plan.solver, len(run.plan), run.states.shape) == ("unipc", 12, (13, 2, 3, 8, 8))
    final = run.plan.run(lambda x, t: session.run(None, {"x": x, "t": t, **run.conditions})[0], run.x_T, run.noise)
    np.testing.assert_allclose(final, run.states[-1], atol=1e-4)


def test_same_network_gives_the_same_bundle(
    exported: Path, labelled: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    again = export_module(labelled, tmp_path / "b", spec=labelled.spec(), **settings)
    for file in (GRAPH, SAMPLER, "reference.npz", WEIGHTS, "bundle.json"):
        assert (tmp_path / "b" / file).read_bytes() == (exported / file).read_bytes(), file
    assert again.digest == read_bundle(exported).digest


def test_module_is_left_as_it_was(exported: Path, labelled: Any) -> None:
    assert labelled.training
    assert all(parameter.requires_grad for parameter in labelled.parameters())
