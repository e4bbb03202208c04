"""The `sampler` graph: one file, one call, any plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_denoisers import PLANS, all_names, close, denoise_with, named, plan_of, session, toy, toy_inputs, weight_bytes

from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.backends.openvino import OpenVinoBackend
from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec, read_bundle, write_bundle
from ddpm_deploy.errors import BackendError, ExportError
from ddpm_deploy.export.sampler_graph import body_of, build_sampler
from ddpm_deploy.export.signature import sampler_specs
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sample_with_graph
from ddpm_deploy.plan.feeds import plan_feeds

PICTURE, SIGNAL = (3, 8, 8), (2, 6)
BACKENDS = {"onnxruntime": OnnxRuntimeBackend, "openvino": OpenVinoBackend}


def build(denoiser: onnx.ModelProto, shape: tuple[int, ...], target: str = "onnx", **options: Any) -> onnx.ModelProto:
    settings = {"inputs": toy_inputs(shape), "learned_variance": False, "default_plan": None}
    return build_sampler(denoiser, sample_shape=shape, target=target, **{**settings, **options})


def open_graph(
    runtime: str, model: onnx.ModelProto, shape: tuple[int, ...], target: str = "onnx", **options: Any
) -> Backend:
    settings = {"inputs": toy_inputs(shape), "learned_variance": False}
    inputs, outputs = sampler_specs(sample_shape=shape, target=target, **{**settings, **options})
    return BACKENDS[runtime].from_bytes(model.SerializeToString(), inputs, outputs, threads=1)


Unet = tuple[onnx.ModelProto, tuple[TensorSpec, ...]]


@pytest.fixture(scope="module")
def unet(tiny_bundle: Path) -> Unet:
    return onnx.load(tiny_bundle / "denoiser.fp32.onnx"), read_bundle(tiny_bundle).manifest.files[0].inputs


@pytest.fixture(scope="module")
def unet_sampler(unet: Unet) -> onnx.ModelProto:
    return build(unet[0], PICTURE, inputs=unet[1])


@pytest.fixture(scope="module")
def loop(unet: Unet) -> Callable[..., np.ndarray]:
    """The per-row loop in numpy around a session of the denoiser."""
    denoise = denoise_with(unet[0])
    return lambda plan, x_T, noise=None: plan.run(denoise, x_T, noise)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, unet: Unet, unet_sampler: onnx.ModelProto) -> Iterator[Backend]:
    with open_graph(request.param, unet_sampler, PICTURE, inputs=unet[1]) as opened:
        yield opened


# -- the same picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_one_file_runs_every_plan_as_the_loop_does(
    backend: Backend, loop: Callable[..., np.ndarray], name: str
) -> None:
    plan = named(name)
    for batch in (1, 3):
        x_T, noise = initial_noise(7, range(batch), PICTURE), noise_source(7, range(batch), PICTURE)
        given = None if plan.is_deterministic else noise
        close(sample_with_graph(backend, plan, x_T, given), loop(plan, x_T, given), 1e-4)


def test_noise_is_broadcast_over_the_batch_and_the_axes_of_a_sample(
    backend: Backend, loop: Callable[..., np.ndarray]
) -> None:
    plan, x_T = named("ddpm-12"), initial_noise(3, range(2), PICTURE)
    rng = np.random.default_rng(0)
    for shape in ((1, *PICTURE), (2, 1, 1, 1), (1, 3, 1, 8)):
        noise = rng.standard_normal((12, *shape)).astype(np.float32)
        close(sample_with_graph(backend, plan, x_T, noise), loop(plan, x_T, noise), 1e-4)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_labels_reach_the_network_in_every_row(runtime: str, labelled_bundle: Path) -> None:
    denoiser = onnx.load(labelled_bundle / "denoiser.fp32.onnx")
    inputs = read_bundle(labelled_bundle).manifest.files[0].inputs
    plan, x_T, labels = named("unipc-12"), initial_noise(0, range(3), PICTURE), {"labels": np.array([0, 1, 2])}
    expected = plan.run(denoise_with(denoiser, labels), x_T)
    assert np.abs(expected - plan.run(denoise_with(denoiser, {"labels": np.zeros(3, int)}), x_T)).max() > 1e-2
    model = build(denoiser, PICTURE, inputs=inputs)
    with open_graph(runtime, model, PICTURE, inputs=inputs) as backend:
        close(sample_with_graph(backend, plan, x_T, condition=labels), expected, 1e-4)


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("shape", [(5,), SIGNAL, (1, 2, 3, 4)], ids=["points", "signals", "volumes"])
def test_samples_need_not_be_pictures(runtime: str, shape: tuple[int, ...]) -> None:
    denoiser, inputs = toy(shape, steered=True), toy_inputs(shape, steered=True)
    x_T, steer = initial_noise(0, range(2), shape), {"steer": np.array([-1, 1], np.float32)}
    noise = noise_source(0, range(2), shape)
    with open_graph(runtime, build(denoiser, shape, inputs=inputs), shape, inputs=inputs) as backend:
        for name in ("unipc-12", "ddpm-4-unclipped"):
            plan = named(name)
            given = None if plan.is_deterministic else noise
            expected = plan.run(denoise_with(denoiser, steer), x_T, given)
            close(sample_with_graph(backend, plan, x_T, given, steer), expected)


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("solver", ["ddpm", "unipc", "dpmpp_2m_sde"])
def test_a_learned_variance_scales_the_noise_of_the_plans_that_know_it(runtime: str, solver: str) -> None:
    denoiser = toy(SIGNAL, learned=True)
    plan = plan_of(solver, 8, **({"variance": "learned"} if solver == "ddpm" else {}))
    x_T, noise = initial_noise(1, range(3), SIGNAL), noise_source(1, range(3), SIGNAL)
    given = None if plan.is_deterministic else noise
    expected = plan.run(denoise_with(denoiser, channels=None if solver == "ddpm" else 2), x_T, given)
    model = build(denoiser, SIGNAL, learned_variance=True)
    with open_graph(runtime, model, SIGNAL, learned_variance=True) as backend:
        close(sample_with_graph(backend, plan, x_T, given), expected)


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("opset", [18, 21, 23])
def test_every_opset_that_a_target_has_will_do(runtime: str, opset: int) -> None:
    denoiser, plan, x_T = toy(SIGNAL), named("unipc-12"), initial_noise(0, range(2), SIGNAL)
    expected = plan.run(denoise_with(denoiser), x_T)
    denoiser.opset_import[0].version = opset
    with open_graph(runtime, build(denoiser, SIGNAL), SIGNAL) as backend:
        close(sample_with_graph(backend, plan, x_T), expected)


def test_height_and_width_may_be_free() -> None:
    free, x = ("B", 1, "H", 4), ("H", 4)
    denoiser = toy((1, 3, 4))
    for value in (*denoiser.graph.input[:1], *denoiser.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "H"
    inputs = (TensorSpec("x", free, "float32"), TensorSpec("t", ("B",), "float32"))
    model = build_sampler(
        denoiser, inputs=inputs, sample_shape=(1, *x), learned_variance=False, target="onnx", default_plan=None
    )
    opened, plan = session(model), named("unipc-12")
    for height in (2, 5):
        x_T = initial_noise(0, range(2), (1, height, 4))
        close(opened.run(None, {"x_T": x_T, **plan_feeds(plan, 3)})[0], plan.run(denoise_with(denoiser), x_T))


@pytest.mark.parametrize("runtime", BACKENDS)
def test_for_tensorrt_the_state_is_fixed_and_smaller_plans_are_padded(runtime: str) -> None:
    model, x_T = build(toy(SIGNAL), SIGNAL, "tensorrt"), initial_noise(0, range(2), SIGNAL)
    assert "ReduceSum" not in {node.op_type for node in body_of(model).node}
    with open_graph(runtime, model, SIGNAL, "tensorrt") as backend:
        for name in ("ddim-4", "heun-4", "unipc-12"):
            close(sample_with_graph(backend, named(name), x_T), named(name).run(denoise_with(toy(SIGNAL)), x_T))


# -- the default plan -------------------------------------------------------------------------------------------------


def test_with_a_default_plan_the_initial_noise_alone_is_enough() -> None:
    denoiser, x_T = toy(SIGNAL), initial_noise(0, range(2), SIGNAL)
    opened = session(build(denoiser, SIGNAL, "onnxruntime-cpu", default_plan=named("unipc-12")))
    assert [argument.name for argument in opened.get_inputs()] == ["x_T"]
    close(opened.run(None, {"x_T": x_T})[0], named("unipc-12").run(denoise_with(denoiser), x_T))
    other = opened.run(None, {"x_T": x_T, **plan_feeds(named("heun-4"), 2)})[0]
    close(other, named("heun-4").run(denoise_with(denoiser), x_T))


def test_the_backend_takes_feeds_with_and_without_the_tables() -> None:
    denoiser, x_T = toy(SIGNAL), initial_noise(0, range(2), SIGNAL)
    model = build(denoiser, SIGNAL, "onnxruntime-cpu", default_plan=named("ddim-4"))
    with open_graph("onnxruntime", model, SIGNAL, "onnxruntime-cpu") as backend:
        assert [spec.name for spec in backend.inputs] == ["x_T", "t", "predict", "clip", "update", "noise"]
        close(backend.run({"x_T": x_T})["samples"], named("ddim-4").run(denoise_with(denoiser), x_T))
        close(sample_with_graph(backend, named("heun-4"), x_T), named("heun-4").run(denoise_with(denoiser), x_T))
        with pytest.raises(BackendError, match=r"received t, expected x_T \(and may receive clip, noise, predict"):
            backend.run({"t": np.zeros(4, np.float32)})
        with pytest.raises(BackendError, match=r"received wrong, x_T, expected x_T"):
            backend.run({"x_T": x_T, "wrong": x_T})


def test_a_default_plan_that_draws_noise_leaves_the_noise_to_the_caller() -> None:
    denoiser, x_T = toy(SIGNAL), initial_noise(0, range(2), SIGNAL)
    plan, noise = named("ddpm-12"), np.random.default_rng(0).standard_normal((12, 2, *SIGNAL)).astype(np.float32)
    opened = session(build(denoiser, SIGNAL, "onnxruntime-cpu", default_plan=plan))
    assert [argument.name for argument in opened.get_inputs()] == ["x_T", "noise"]
    close(opened.run(None, {"x_T": x_T, "noise": noise})[0], plan.run(denoise_with(denoiser), x_T, noise))


def test_runtimes_that_would_freeze_a_default_plan_get_none() -> None:
    with pytest.raises(ValueError, match=r"default_plan: 'openvino' would freeze it"):
        build(toy(SIGNAL), SIGNAL, "openvino", default_plan=named("ddim-4"))


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_graph_is_valid_and_the_weights_are_in_the_body_once(unet: Unet, unet_sampler: onnx.ModelProto) -> None:
    onnx.checker.check_model(unet_sampler, full_check=True)
    assert weight_bytes(body_of(unet_sampler)) == pytest.approx(weight_bytes(unet[0].graph), rel=0.1)
    assert weight_bytes(unet_sampler.graph) < 1000
    assert not body_of(unet_sampler).value_info


def test_the_body_reads_nothing_from_outside_and_shares_no_name_with_it(unet_sampler: onnx.ModelProto) -> None:
    body = body_of(unet_sampler)
    inside, outside = all_names(body), all_names(unet_sampler.graph)
    assert len(set(inside)) == len(inside)
    assert not set(inside) & set(outside)
    assert {name for node in body.node for name in node.input if name} <= set(inside)


def test_the_loop_adds_no_matrix_product_and_hardly_any_shape_arithmetic() -> None:
    model = build(toy(SIGNAL), SIGNAL)
    inside = [node.op_type for node in body_of(model).node]
    assert inside.count("MatMul") == 1
    assert inside.count("Shape") == 1
    assert not {"Expand", "Concat", "Einsum", "Gemm"} & set(inside)
    outside = [node.op_type for node in model.graph.node]
    assert (outside.count("Shape"), outside.count("Expand")) == (2, 2)


def test_the_same_denoiser_gives_the_same_bytes(unet: Unet, unet_sampler: onnx.ModelProto) -> None:
    again = build(unet[0], PICTURE, inputs=unet[1])
    assert again.SerializeToString(deterministic=True) == unet_sampler.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, unet: Unet) -> Bundle:
    """The tiny bundle with samplers for both runtimes."""
    read = read_bundle(tiny_bundle)
    files = {file.path: read.open_bytes(file) for file in read.manifest.files}
    records = list(read.manifest.files)
    for target, plan in (("onnxruntime-cpu", named("ddim-4")), ("openvino", None)):
        model = build(unet[0], PICTURE, target, inputs=unet[1], default_plan=plan)
        specs = sampler_specs(unet[1], PICTURE, learned_variance=False, target=target)
        records.append(ModelFile(f"sampler.fp32.{target}.onnx", "sampler", "fp32", target, 20, *specs))
        files[records[-1].path] = model.SerializeToString()
    out = tmp_path_factory.mktemp("sampler") / "bundle"
    write_bundle(out, replace(read.manifest, files=tuple(records)), files)
    return read_bundle(out)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_each_runtime_opens_the_sampler_made_for_it_and_the_denoiser_of_all(
    runtime: str, bundle: Bundle, loop: Callable[..., np.ndarray]
) -> None:
    plan, x_T = named("unipc-12"), initial_noise(0, range(2), PICTURE)
    with open_backend(runtime, bundle, role="sampler", threads=1) as backend:
        close(sample_with_graph(backend, plan, x_T), loop(plan, x_T), 1e-4)
    with open_backend(runtime, bundle, threads=1) as backend:
        assert [spec.name for spec in backend.inputs] == ["x", "t"]


@pytest.mark.parametrize(
    ("runtime", "device", "target"),
    [
        ("onnxruntime", "cpu", "onnxruntime-cpu"),
        ("onnxruntime", "cuda:1", "onnxruntime-cuda"),
        ("onnxruntime", "CUDAExecutionProvider", "onnxruntime-cuda"),
        ("onnxruntime", "WebGpuExecutionProvider", None),
        ("openvino", "cpu", "openvino"),
    ],
)
def test_a_runtime_asks_for_the_file_made_for_its_device(runtime: str, device: str, target: str | None) -> None:
    asked = []

    class Asked:
        def file(self, *question: str) -> None:
            asked.append(question)
            raise LookupError

    with pytest.raises(LookupError):
        open_backend(runtime, Asked(), role="sampler", device=device)
    assert asked == [("sampler", "fp32", target)]


def test_what_does_not_fit_is_refused() -> None:
    denoiser, inputs = toy(SIGNAL, learned=True, steered=True), toy_inputs(SIGNAL)
    clash = (*inputs, TensorSpec("log_variance", ("B",), "float32"))
    with pytest.raises(ExportError, match=r"got inputs \['x', 't', 'steer'\], expected x, t and \['log_variance'\]"):
        build(denoiser, SIGNAL, inputs=clash, learned_variance=True)
    denoiser.graph.input[2].name = denoiser.graph.node[2].input[1] = "log_variance"
    with pytest.raises(ExportError, match=r"conditions: got \['log_variance'\], which the graphs have for themselves"):
        build(denoiser, SIGNAL, inputs=clash, learned_variance=True)
    with pytest.raises(ExportError, match="got 2 output channels, expected 3, or 6"):
        build(toy(SIGNAL), (3, 6), inputs=toy_inputs((3, 6)))
