"""Large tensors in one file that the graphs of a bundle share."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import strategies as st
from toy_denoisers import toy

from ddpm_deploy import Sampler
from ddpm_deploy.backends import external, open_backend
from ddpm_deploy.backends.external import Weights, check_own_tensors, open_graph
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import Bundle, read_bundle, write_bundle
from ddpm_deploy.errors import BackendError, BundleError, ExportError
from ddpm_deploy.export import Options, export_module, weights
from ddpm_deploy.export.sampler_graph import body_of
from ddpm_deploy.export.weights import SHARED_NAME, without_values
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.one_file import sample_with_graph

RUNTIMES = ("onnxruntime", "openvino")
LABELS = {"labels": np.array([0, 2, 1])}
TARGETS = ("onnxruntime-cpu", "openvino")
QUICK = {"parity_timesteps": 12, "batches": (2,)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, labelled: Any, settings: dict[str, Any]) -> Bundle:
    """A denoiser and a sampler for each of two runtimes, all around one weights file."""
    options = Options(targets=TARGETS, opset=18, share_weights=True, **QUICK)
    out = tmp_path_factory.mktemp("shared") / "bundle"
    return export_module(labelled, out, spec=labelled.spec(), options=options, **settings)


def graphs(bundle: Bundle) -> list[Any]:
    return [file for file in bundle.manifest.files if file.target != "torch"]


@pytest.fixture
def tampered(shared: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """Writes the bundle with its denoiser's first external tensor changed, hashes and all."""

    def make(change: Callable[[onnx.TensorProto], None], name: str = "denoiser.fp32.onnx") -> Bundle:
        contents = {file.path: shared.open_bytes(file) for file in shared.manifest.all_files}
        model = onnx.load_from_string(contents[name])
        graph = body_of(model) if name.startswith("sampler") else model.graph
        change(next(tensor for tensor in graph.initializer if tensor.external_data))
        contents[name] = model.SerializeToString()
        return write_bundle(tmp_path / "tampered", shared.manifest, contents)

    return make


def entry(key: str, value: str) -> Callable[[onnx.TensorProto], None]:
    def change(tensor: onnx.TensorProto) -> None:
        next(found for found in tensor.external_data if found.key == key).value = value

    return change


# -- what is written --------------------------------------------------------------------------------------------------


def test_every_weight_is_stored_once_for_all_graphs(shared: Bundle, labelled: Any) -> None:
    (data,) = shared.manifest.weights
    assert (data.path, {file.weights for file in graphs(shared)}) == (SHARED_NAME, {SHARED_NAME})
    large = sum(p.numel() * 4 for p in labelled.parameters() if p.numel() * 4 >= 1024)
    assert large <= data.size_bytes < 3 * large  # the shape of upsampling differs by runtime; pages are padded
    whole = sum(len(open_graph("it", shared, file).model) for file in graphs(shared))
    assert sum(file.size_bytes for file in graphs(shared)) + data.size_bytes < 0.6 * whole


def test_offsets_are_pages_and_do_not_overlap(shared: Bundle) -> None:
    model = onnx.load_from_string(shared.open_bytes(graphs(shared)[0]))
    stretches = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found = {item.key: item.value for item in tensor.external_data}
            stretches.add((int(found["offset"]), int(found["length"])))
    assert len(stretches) > 10
    ends = [0]
    for offset, length in sorted(stretches):
        assert offset % 4096 == 0
        assert offset >= ends[-1]
        ends.append(offset + length)


def test_filled_in_again_a_graph_is_what_it_is_without_the_option(shared: Bundle, exported: Path) -> None:
    plain = read_bundle(exported)
    for name in ("denoiser.fp32.onnx", "sampler.fp32.onnxruntime-cpu.onnx"):
        files = [next(file for file in bundle.manifest.files if file.path == name) for bundle in (shared, plain)]
        after, before = onnx.load_from_string(open_graph("it", shared, files[0]).model), onnx.load(exported / name)
        assert after.graph == before.graph


def test_without_the_option_the_weights_stay_inside(exported: Path) -> None:
    manifest = read_bundle(exported).manifest
    assert (manifest.weights, {file.weights for file in manifest.files}) == ((), {None})


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_denoiser_and_sampler_draw_what_torch_draws(shared: Bundle, runtime: str) -> None:
    with Sampler.load(shared, backend="torch") as sampler:
        expected = sampler.sample(3, condition=LABELS)
        plan = sampler.plan()
    with Sampler.load(shared, backend=runtime, threads=1) as sampler:
        np.testing.assert_allclose(sampler.sample(3, condition=LABELS), expected, atol=1e-4)
    x_T = initial_noise(0, range(3), (3, 8, 8))
    with open_backend(runtime, shared, role="sampler", threads=1) as backend:
        np.testing.assert_allclose(sample_with_graph(backend, plan, x_T, condition=LABELS), expected, atol=1e-4)


def test_bare_onnxruntime_opens_the_files_where_they_lie(shared: Bundle) -> None:
    for file in graphs(shared):
        onnxruntime.InferenceSession(shared.path(file), providers=["CPUExecutionProvider"])


def test_a_graph_without_its_bundle_is_refused(shared: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(shared.root / "denoiser.fp32.onnx", tmp_path)
    shutil.copy(shared.root / SHARED_NAME, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match="keeps its values in another file"):
        Sampler.load("denoiser.fp32.onnx")


def test_a_missing_or_damaged_weights_file_is_refused(shared: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(shared.root, tmp_path / "copy")
    data = bytearray((copy / SHARED_NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / SHARED_NAME).write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin: got sha256"):
        read_bundle(copy)
    (copy / SHARED_NAME).unlink()
    with pytest.raises(BundleError, match=r"weights\.bin: is missing"):
        read_bundle(copy)


def test_a_weights_file_that_is_replaced_after_reading_is_refused(shared: Bundle, tmp_path: Path) -> None:
    bundle = read_bundle(shutil.copytree(shared.root, tmp_path / "copy"))
    data = (bundle.root / SHARED_NAME).read_bytes()
    (bundle.root / SHARED_NAME).write_bytes(bytes(len(data)))
    with pytest.raises(BundleError, match=r"weights\.bin: got sha256"):
        open_backend("onnxruntime", bundle)


HOSTILE = {
    "a path": (entry("location", "../weights.bin"), "location: got '../weights.bin'"),
    "an absolute path": (entry("location", "/etc/passwd"), "location: got '/etc/passwd'"),
    "another file": (entry("location", "reference.npz"), "location: got 'reference.npz'"),
    "beyond the end": (entry("offset", "999999999999"), "ends at"),
    "a negative offset": (entry("offset", "-4096"), "expected whole numbers"),
    "an offset of many digits": (entry("offset", "9" * 5000), "expected whole numbers"),
    "a length too short": (entry("length", "4"), "got 4 bytes in another file, expected"),
    "no length": (lambda tensor: tensor.external_data.pop(), "expected location, offset, length once each"),
    "an entry twice": (lambda tensor: tensor.external_data.add(key="offset", value="0"), "once each"),
    "an unknown entry": (lambda tensor: tensor.external_data.add(key="basepath", value="/"), "once each"),
    "a giant shape": (lambda tensor: tensor.dims.append(2**62), "in another file, expected"),
    "a negative shape": (lambda tensor: tensor.dims.append(-1), "in another file, expected"),
    "values of its own too": (lambda tensor: setattr(tensor, "raw_data", b"\0" * 4), "both inside and in another file"),
    "an unknown type": (lambda tensor: setattr(tensor, "data_type", 8), "in another file, expected 0"),
    "inside by its own word": (lambda tensor: tensor.ClearField("data_location"), "in another file, expected"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_tampered_entries_are_refused_before_a_runtime_sees_them(
    tampered: Callable[..., Bundle], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = HOSTILE[case]
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("the runtime was called"))
    with pytest.raises(BackendError, match=message):
        open_backend("onnxruntime", tampered(change))


def test_the_inside_of_a_loop_is_looked_at_too(tampered: Callable[..., Bundle]) -> None:
    bundle = tampered(entry("location", "../weights.bin"), "sampler.fp32.openvino.onnx")
    with pytest.raises(BackendError, match=r"location: got '\.\./weights\.bin'"):
        open_backend("openvino", bundle, role="sampler")


@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=st.data())
def test_damaged_graphs_end_in_one_error(shared: Bundle, data: st.DataObject) -> None:
    model = bytearray(shared.open_bytes(shared.manifest.files[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BackendError):
        check_own_tensors("it", bytes(model), Weights(SHARED_NAME, bytes(100_000)))


# -- over 2 GB, made small ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, labelled: Any, settings: dict[str, Any]) -> Bundle:
    """An export in which no graph of more than 30 kB may be one message."""
    options = Options(targets=("onnxruntime-cuda",), graphs=("denoiser", "step"), precisions=("fp32", "fp16"), **QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "MAX_GRAPH_BYTES", 30_000)
        return export_module(labelled, tmp_path_factory.mktemp("large") / "b", options=options, **settings)


def test_a_large_model_keeps_its_weights_apart_by_itself(large: Bundle) -> None:
    graphs = ("denoiser.fp32", "step.fp32", "denoiser.fp16", "step.fp16")
    names = {"denoiser.fp32.onnx", *(f"{graph}.onnxruntime-cuda.onnx" for graph in graphs)}
    assert {file.path: file.weights for file in large.manifest.files} == dict.fromkeys(names, SHARED_NAME)
    assert all(file.parity for file in large.manifest.files)


@pytest.mark.parametrize("role", ["denoiser", "step"])
def test_onnxruntime_takes_graph_and_weights_apart_where_one_message_would_be_too_large(
    large: Bundle, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "onnxruntime-cuda"
    file = large.file(role, "fp32", target)
    whole = open_graph("it", large, file)
    monkeypatch.setattr(external, "MAX_MODEL_BYTES", 30_000)
    apart = open_graph("it", large, file)
    assert (whole.weights, apart.weights is not None) == (None, True)
    rng = np.random.default_rng(0)
    sizes = {"B": 2}
    feeds = {
        spec.name: rng.standard_normal([sizes.get(str(axis), axis) for axis in spec.shape]).astype(spec.dtype)
        for spec in file.inputs
    }
    feeds["labels"] = np.array([0, 1])
    results = []
    for graph in (whole, apart):
        with OnnxRuntimeBackend.from_bytes(graph.model, file.inputs, file.outputs, weights=graph.weights) as backend:
            results.append(backend.run(feeds))
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_openvino_says_that_it_takes_no_graph_over_2_gb(large: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MAX_MODEL_BYTES", 30_000)
    with pytest.raises(BackendError, match=r"openvino: denoiser\.fp32\.onnx: got over 30000 bytes"):
        open_backend("openvino", large)


def test_a_loop_over_2_gb_is_refused_for_its_body_is_not_read_from_memory(
    shared: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "MAX_MODEL_BYTES", 30_000)
    with pytest.raises(BackendError, match=r"of a subgraph keeps its values in .weights\.bin."):
        open_backend("onnxruntime", shared, role="sampler")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": ("sampler",)}, r"sampler\.fp32\.onnxruntime-cpu\.onnx: got over 2 GB of weights"),
        ({"graphs": ("denoiser",), "precisions": ("int8",)}, "which cannot be quantised; leave int8 out"),
        ({"graphs": ("denoiser",), "share_weights": False}, "leave share_weights to None"),
    ],
)
def test_what_cannot_be_done_over_2_gb_is_refused(
    options: dict[str, Any], message: str, large: Bundle, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(large.root / "denoiser.fp32.onnx")
    monkeypatch.setattr(weights, "MAX_GRAPH_BYTES", 30_000)
    with pytest.raises(ExportError, match=message):
        _export_graph(model, tmp_path / "b", settings, Options(**QUICK, **options))


def test_the_checker_sees_every_node_of_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy((1, 4, 64))
    model.graph.node[0].op_type = "NoSuchOperator"
    monkeypatch.setattr(weights, "MAX_GRAPH_BYTES", 1000)
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        onnx.checker.check_model(without_values(model), full_check=True)


def _export_graph(model: onnx.ModelProto, out: Path, settings: dict[str, Any], options: Options) -> None:
    from ddpm_deploy.bundle import Defaults
    from ddpm_deploy.export.api import export_source
    from ddpm_deploy.export.sources.base import Source

    kept = {key: settings[key] for key in ("sample_shape", "schedule", "output", "clip", "conditions", "name")}
    source = Source(**kept, prediction="eps", variance="small", defaults=Defaults("unipc", 12, "logsnr"),
                    provenance={}, graph=model, network=None, spec=None)  # fmt: skip
    export_source(source, out, options=options)


# -- over 2 GB, for real -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("DDPM_TEST_LARGE"), reason="needs 20 GB of memory; set DDPM_TEST_LARGE=1")
def test_a_network_of_2_gb_exports_and_runs(tmp_path: Path, settings: dict[str, Any]) -> None:
    class Wide(torch.nn.Module):
        """Twelve matrices of 180 MB."""

        def __init__(self, width: int = 6720) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(9, width), torch.nn.Linear(width, 8)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(12))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            h = self.first(torch.cat([x, t[:, None] / 40], dim=1))
            for layer in self.layers:
                h = h + layer(torch.tanh(h))
            out: torch.Tensor = self.last(h)
            return out

    torch.manual_seed(0)
    network = Wide()
    assert sum(parameter.numel() * 4 for parameter in network.parameters()) > 2**31
    kept = {key: settings[key] for key in ("schedule", "output", "name")}
    options = Options(graphs=("denoiser",), parity_timesteps=12, batches=(2,))
    bundle = export_module(network, tmp_path / "b", sample_shape=(8,), options=options, **kept)
    (data,), (file,) = bundle.manifest.weights, bundle.manifest.files
    assert (data.size_bytes > 2**31, file.size_bytes < 10**6, file.weights) == (True, True, SHARED_NAME)

    feeds = {"x": np.ones((1, 8), np.float32), "t": np.full(1, 3, np.float32)}
    with torch.inference_mode():
        expected = network(*map(torch.from_numpy, feeds.values())).numpy()
    with open_backend("onnxruntime", bundle, threads=1) as backend:
        got = backend.run(feeds)["prediction"]
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    with pytest.raises(BackendError, match=r"openvino: .* which it cannot take from memory"):
        open_backend("openvino", bundle)
