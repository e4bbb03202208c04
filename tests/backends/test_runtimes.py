"""What is particular to one runtime: providers, precisions, threads, and models that are not what they should be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.backends import open_backend
from ddpm_deploy.backends.external import refuse_external_data
from ddpm_deploy.backends.probe import INPUTS, MODEL, OUTPUTS
from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec, default_bundle, read_bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable, BundleError
from ddpm_deploy.job import example_conditions


@pytest.fixture(params=["onnxruntime", "openvino"])
def from_bytes(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    if request.param == "onnxruntime":
        from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend.from_bytes
    from ddpm_deploy.backends.openvino import OpenVinoBackend

    return OpenVinoBackend.from_bytes


def int8_digits() -> tuple[bytes, ModelFile]:
    """The digits denoiser in int8, and the record of the float32 one."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch", reason="the exporter imports it")
    from ddpm_deploy.export.quantise import quantise
    from ddpm_deploy.export.targets import ONNXRUNTIME_INT8

    bundle = read_bundle(default_bundle())
    file = bundle.file("denoiser", "fp32")
    rng = np.random.default_rng(1)
    steering = example_conditions(bundle.manifest.conditions, 4)
    states = [
        {"x": rng.standard_normal((4, 1, 8, 8), np.float32), "t": rng.uniform(0, 999, 4).astype(np.float32), **steering}
        for _ in range(4)
    ]
    model = quantise(onnx.load_from_string(bundle.open_bytes(file)), states, form=ONNXRUNTIME_INT8)
    return model.SerializeToString(), file


def external_model(folder: Path) -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(MODEL)
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return (folder / "m.onnx").read_bytes()


def test_weights_in_another_file_are_refused_even_if_it_lies_in_the_working_directory(
    from_bytes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = external_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match="tensor 'w' keeps its values in another file"):
        from_bytes(model, INPUTS, OUTPUTS)


@pytest.mark.parametrize("model", [b"", b"no model at all", MODEL[:200], MODEL[:-1]], ids=["empty", "text", "cut", "1"])
def test_bytes_that_are_no_model_are_refused_in_one_line(from_bytes: Any, model: bytes) -> None:
    with pytest.raises(BackendError, match="cannot load the model") as caught:
        from_bytes(model, INPUTS, OUTPUTS)
    assert "\n" not in str(caught.value)


def test_model_with_other_tensors_than_declared_is_refused(from_bytes: Any) -> None:
    with pytest.raises(BackendError, match=r"outputs of the graph: received y float32\[free, 1, 4, 4\], expected z"):
        from_bytes(MODEL, INPUTS, [TensorSpec("z", ("B", 1, 4, 4), "float32")])


def test_threads_are_honoured(from_bytes: Any) -> None:
    with from_bytes(MODEL, INPUTS, OUTPUTS, threads=2) as backend:
        assert backend.threads == 2


def test_walk_finds_external_weights_inside_a_subgraph() -> None:
    onnx = pytest.importorskip("onnx")
    outside = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    body = onnx.GraphProto(name="body", initializer=[outside])
    branch = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH, g=body)
    node = onnx.NodeProto(op_type="If", attribute=[branch])
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
    with pytest.raises(BackendError, match="tensor 'hidden' keeps its values in another file"):
        refuse_external_data("it", model.SerializeToString())


def test_walk_finds_external_weights_in_the_default_of_a_functions_attribute() -> None:
    onnx = pytest.importorskip("onnx")
    outside = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    default = onnx.AttributeProto(name="table", type=onnx.AttributeProto.TENSOR, t=outside)
    model = onnx.ModelProto(functions=[onnx.FunctionProto(name="f", attribute_proto=[default])])
    with pytest.raises(BackendError, match="tensor 'hidden' keeps its values in another file"):
        refuse_external_data("it", model.SerializeToString())


def test_a_number_without_end_is_refused_after_ten_bytes() -> None:
    with pytest.raises(BackendError, match="a number of more than 10 bytes before byte 10"):
        refuse_external_data("it", b"\xff" * 1_000_000)


def test_tensor_and_input_named_location_are_no_external_data() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.NodeProto(op_type="Identity", input=["location"], output=["external_data"])
    weights = onnx.TensorProto(name="location", data_type=1, dims=[1], float_data=[1.0])
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[node], initializer=[weights]))
    refuse_external_data("it", model.SerializeToString())


class TestOnnxRuntime:
    @pytest.fixture(autouse=True)
    def module(self) -> None:
        pytest.importorskip("onnxruntime")

    def test_provider_that_the_build_lacks_is_refused_with_a_remedy(self) -> None:
        from ddpm_deploy.backends.onnxruntime import provider_for

        with pytest.raises(BackendUnavailable, match="NoSuchExecutionProvider is not in this build"):
            provider_for("NoSuchExecutionProvider")

    def test_cuda_is_asked_for_by_number_and_without_tf32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        from ddpm_deploy.backends.onnxruntime import CPU, CUDA, provider_for

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
        with pytest.raises(BackendUnavailable, match=r"pip install 'ddpm-deploy\[gpu\]'"):
            provider_for("cuda")
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        assert provider_for("cuda:1") == (CUDA, {"device_id": "1", "use_tf32": "0"})

    def test_provider_may_be_named_in_place_of_a_device(self) -> None:
        from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend

        with OnnxRuntimeBackend.from_bytes(MODEL, INPUTS, OUTPUTS, device="CPUExecutionProvider") as backend:
            assert backend.batch_invariant
            assert "2 nodes on CPUExecutionProvider" in backend.details["placement"]

    def test_silent_fallback_to_the_cpu_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        from ddpm_deploy.backends.onnxruntime import CPU, CUDA, OnnxRuntimeBackend

        real = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(
            onnxruntime, "InferenceSession", lambda model, options, **_: real(model, options, providers=[CPU])
        )
        with pytest.raises(BackendUnavailable, match="got CPUExecutionProvider, expected CUDAExecutionProvider"):
            OnnxRuntimeBackend.from_bytes(MODEL, INPUTS, OUTPUTS, device="cuda")

    def test_computation_left_to_another_provider_is_refused_and_shape_arithmetic_is_not(self) -> None:
        from ddpm_deploy.backends.onnxruntime import CPU, CUDA, check_placement

        check_placement(CUDA, {CUDA: {"Conv": 3}, CPU: {"Shape": 1, "Gather": 2}})
        with pytest.raises(BackendError, match="CUDAExecutionProvider leaves Conv, MatMul to another provider"):
            check_placement(CUDA, {CUDA: {"Add": 1}, CPU: {"Conv": 1, "MatMul": 1, "Shape": 1}})

    @pytest.mark.parametrize(("version", "spins"), [("1.26.3", "0"), ("1.27.0", "1"), ("1.100.0rc1", "1")])
    def test_workers_spin_only_where_it_can_be_said_how_long(
        self, monkeypatch: pytest.MonkeyPatch, version: str, spins: str
    ) -> None:
        import onnxruntime

        from ddpm_deploy.backends.onnxruntime import _session_options

        monkeypatch.setattr(onnxruntime, "__version__", version)
        options = _session_options(1)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
        assert 0 < int(options.get_session_config_entry("session.intra_op.spin_duration_us")) < 1000

    def test_workers_are_asleep_soon_after_a_call(self) -> None:
        """With the runtime's own default they take a core for 16 ms and more."""
        import time

        with Sampler.load(threads=2) as sampler:
            sampler.warmup(8)
            before = time.process_time()
            time.sleep(0.05)
        assert time.process_time() - before < 0.01

    def test_usage_data_is_off(self) -> None:
        import os

        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


class TestOpenVino:
    @pytest.fixture(autouse=True)
    def module(self) -> None:
        pytest.importorskip("openvino")

    def test_bf16_is_a_hint_where_the_cpu_computes_in_it(self) -> None:
        from ddpm_deploy.backends.openvino import precision_hint

        assert precision_hint("bf16", "cpu", ["FP32", "BF16", "INT8"]) == "bf16"
        assert precision_hint("fp32", "cpu", ["FP32", "BF16", "INT8"]) == "f32"
        assert precision_hint("int8", "cpu", ["FP32", "BF16", "INT8"]) == "f32"

    def test_bf16_is_refused_where_the_cpu_does_not_compute_in_it(self) -> None:
        from ddpm_deploy.backends.openvino import precision_hint

        with pytest.raises(BackendUnavailable, match=r"cpu does not compute in bf16: .*expected BF16 \(avx512_bf16"):
            precision_hint("bf16", "cpu", ["FP32", "INT8"])

    def test_bf16_opens_or_is_refused_as_availability_says(self, bundle: Bundle) -> None:
        from ddpm_deploy.backends.openvino import availability

        if "bf16" in availability().precisions:
            assert open_backend("openvino", bundle, precision="bf16").precision == "bf16"
        else:
            with pytest.raises(BackendUnavailable, match="does not compute in bf16"):
                open_backend("openvino", bundle, precision="bf16")

    def test_int8_with_the_rest_in_bf16_is_a_way_to_open_the_int8_file(self) -> None:
        from ddpm_deploy.backends.openvino import availability, precision_hint

        found = availability()
        assert found.of_files == ({"int8-bf16": "int8"} if "bf16" in found.precisions else {})
        assert precision_hint("int8-bf16", "cpu", ["FP32", "BF16"]) == "bf16"
        with pytest.raises(BackendUnavailable, match=r"does not compute in int8-bf16: .*; use precision 'int8'"):
            precision_hint("int8-bf16", "cpu", ["FP32", "INT8"])

    def test_other_precision_than_asked_for_is_refused(self) -> None:
        from ddpm_deploy.backends.openvino import check_precision

        check_precision("bf16", "bf16")
        check_precision("int8", "f32")
        with pytest.raises(BackendUnavailable, match="compiled in f32, expected bf16"):
            check_precision("bf16", "f32")

    def test_device_that_is_not_there_is_refused_naming_those_that_are(self) -> None:
        from ddpm_deploy.backends.openvino import OpenVinoBackend

        with pytest.raises(BackendUnavailable, match="got device 'cuda', expected one of cpu"):
            OpenVinoBackend.from_bytes(MODEL, INPUTS, OUTPUTS, device="cuda")

    @pytest.fixture
    def forms(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Sets how many batch sizes may be compiled; 1 means one model for all shapes."""
        from ddpm_deploy.backends import openvino

        return lambda most: monkeypatch.setattr(openvino, "affordable", lambda weights_bytes: most)

    def test_each_batch_size_is_compiled_when_it_is_first_seen(self, bundle: Bundle, feeds: Callable) -> None:
        with open_backend("openvino", bundle, threads=1) as backend:
            assert backend.details["compiled"] == "for up to 8 batch sizes"
            assert backend._runtime.sizes == [1]
            for batch in (3, 1, 3):
                backend.run(feeds(batch))
            assert backend._runtime.sizes == [1, 3]

    def test_pieces_give_the_bits_of_a_compiled_batch_size(
        self, bundle: Bundle, feeds: Callable, forms: Callable
    ) -> None:
        with open_backend("openvino", bundle, threads=1) as backend:
            expected = {batch: backend.run(feeds(batch))["prediction"] for batch in (5, 8)}
        forms(2)
        with open_backend("openvino", bundle, threads=1) as backend:
            backend.run(feeds(2))
            for batch, whole in expected.items():
                np.testing.assert_array_equal(backend.run(feeds(batch))["prediction"], whole)
            assert backend._runtime.sizes == [1, 2]

    def test_int8_is_batch_invariant_in_compiled_sizes_in_pieces_and_for_all_shapes(self, forms: Callable) -> None:
        model, file = int8_digits()
        rng = np.random.default_rng(0)
        x, t = rng.standard_normal((40, 1, 8, 8), np.float32), rng.uniform(0, 999, 40).astype(np.float32)
        feeds = {"x": x, "t": t, **example_conditions(read_bundle(default_bundle()).manifest.conditions, 40)}

        def part(first: int, count: int) -> dict[str, np.ndarray]:
            return {name: array[first : first + count] for name, array in feeds.items()}

        from ddpm_deploy.backends.openvino import OpenVinoBackend

        for most in (8, 2, 1):
            forms(most)
            with OpenVinoBackend.from_bytes(model, file.inputs, file.outputs, precision="int8", threads=1) as backend:
                assert backend.batch_invariant
                alone = [backend.run(part(i, 1))["prediction"] for i in range(40)]
                for batch in (4, 7, 40):
                    parts = [backend.run(part(i, batch))["prediction"] for i in range(0, 40, batch)]
                    together = np.concatenate(parts)
                    np.testing.assert_array_equal(together, np.concatenate(alone))

    def test_large_weights_share_one_model_for_all_shapes(
        self, bundle: Bundle, feeds: Callable, forms: Callable
    ) -> None:
        forms(1)
        with open_backend("openvino", bundle, threads=1) as backend:
            assert backend.details["compiled"] == "for all shapes at once"
            for batch in (1, 4):
                assert backend.run(feeds(batch))["prediction"].shape == (batch, 3, 8, 8)

    def test_only_graphs_whose_one_free_axis_is_the_batch_are_compiled_by_batch_size(self) -> None:
        from ddpm_deploy.backends.openvino import _only_batch_is_free

        x, t = TensorSpec("x", ("B", 3, 8, 8), "float32"), TensorSpec("t", ("B",), "float32")
        assert _only_batch_is_free([x, t])
        for shape in (("B", 3, "H", "W"), ("N", 2), (2, "B"), (), (4,)):
            assert not _only_batch_is_free([x, t, TensorSpec("y", shape, "float32")])


class TestTorch:
    @pytest.fixture(autouse=True)
    def module(self) -> None:
        pytest.importorskip("torch")

    def test_live_module_runs_as_a_backend_in_eval_mode(self) -> None:
        import torch

        from ddpm_deploy.backends.torch import TorchBackend

        class Scale(torch.nn.Module):
            def forward(self, x: torch.Tensor, t: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
                assert not torch.is_grad_enabled()
                return torch.nn.functional.dropout(x, 0.5, self.training) * t[:, None] + gain[:, None]

        shapes = {"x": ("B", 4), "t": ("B",), "gain": ("B",)}
        specs = [TensorSpec(name, shape, "float32") for name, shape in shapes.items()]
        with TorchBackend.from_module(Scale(), specs, [TensorSpec("out", ("B", 4), "float32")]) as backend:
            feeds = {"x": np.ones((2, 4), np.float32), "t": np.float32([2, 3]), "gain": np.float32([0, 1])}
            np.testing.assert_array_equal(backend.run(feeds)["out"], [[2] * 4, [4] * 4])

    def test_module_that_returns_its_input_gives_the_caller_a_copy(self) -> None:
        import torch

        from ddpm_deploy.backends.torch import TorchBackend

        class First(torch.nn.Module):
            def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return x

        specs = [TensorSpec("x", ("B", 4), "float32"), TensorSpec("t", ("B",), "float32")]
        backend = TorchBackend.from_module(First(), specs, [TensorSpec("out", ("B", 4), "float32")])
        feeds = {"x": np.ones((2, 4), np.float32), "t": np.ones(2, np.float32)}
        assert not np.shares_memory(backend.run(feeds)["out"], feeds["x"])

    def test_threads_are_left_alone_unless_given(self, bundle: Bundle) -> None:
        import torch

        before = torch.get_num_threads()
        try:
            assert open_backend("torch", bundle).threads == before == torch.get_num_threads()
            assert open_backend("torch", bundle, threads=before + 1).threads == before + 1 == torch.get_num_threads()
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    def test_precision_that_the_cpu_lacks_is_refused(self, bundle: Bundle, precision: str) -> None:
        with pytest.raises(BackendUnavailable, match=f"got precision '{precision}' on cpu, expected one of fp32, bf16"):
            open_backend("torch", bundle, precision=precision)

    def test_cuda_device_that_is_not_there_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(BackendUnavailable, match="got device 'cuda:99'"):
            open_backend("torch", bundle, device="cuda:99")

    @pytest.mark.parametrize("others", ["nothing", "the old switch", "the new switch", "one for all"])
    def test_tf32_is_what_the_precision_says_whatever_the_process_has_set(self, others: str) -> None:
        import torch

        from ddpm_deploy.backends.torch import tf32

        matmul, cudnn, every = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends
        parts: Any = (matmul, cudnn.conv, cudnn.rnn, every)  # type: ignore[attr-defined]
        before = [part.fp32_precision for part in parts]
        old = matmul.allow_tf32, cudnn.allow_tf32
        try:
            if others == "the old switch":
                matmul.allow_tf32 = True
            if others == "the new switch":
                matmul.fp32_precision = "tf32"  # from now on the old one cannot be read
            if others == "one for all":
                every.fp32_precision = "tf32"
            kept = [part.fp32_precision for part in parts]
            for allowed in (True, False):
                with tf32(allowed):
                    expected = "tf32" if allowed else "ieee"
                    assert [part.fp32_precision for part in parts[:3]] == [expected] * 3
                    assert matmul.allow_tf32 == cudnn.allow_tf32 == allowed
                assert [part.fp32_precision for part in parts] == kept
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = old
            for part, precision in zip(parts, before, strict=True):
                part.fp32_precision = precision

    def test_other_graphs_than_the_denoiser_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(BackendUnavailable, match="got role 'sampler', expected 'denoiser'"):
            open_backend("torch", bundle, role="sampler")

    def test_bundle_without_a_network_is_refused(self, bundle: Bundle) -> None:
        bare = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, network=None))
        with pytest.raises(BundleError, match="network: got null"):
            open_backend("torch", bare)

    def test_weights_of_another_network_are_refused_in_one_line(self, bundle: Bundle) -> None:
        network = {**bundle.manifest.network, "config": {**bundle.manifest.network["config"], "layers_per_block": 2}}
        other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, network=network))
        with pytest.raises(BackendError, match=r"does not fit the network in bundle\.json") as caught:
            open_backend("torch", other)
        assert "\n" not in str(caught.value)
