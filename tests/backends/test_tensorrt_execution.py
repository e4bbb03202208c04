"""Running engines: on a host that stands in for a GPU, with a runtime that computes what TensorRT would."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="writes ONNX")
pytest.importorskip("onnxruntime", reason="computes what the GPU would")

import fake_runtime as fake
from host_device import HostDevice

from ddpm_deploy.backends import Backend, available_backends, open_backend
from ddpm_deploy.backends.cuda import Draw, Loop, OutOfDeviceMemory, driver
from ddpm_deploy.backends.cuda.device import Buffers
from ddpm_deploy.backends.cuda.tensorrt_evaluator import TensorRtEvaluator
from ddpm_deploy.backends.probe import probe
from ddpm_deploy.backends.tensorrt import BuildSettings, Gpu, backend, build_engine, find_gpu, open_adapter
from ddpm_deploy.backends.tensorrt import builder as builder_module
from ddpm_deploy.backends.tensorrt.backend import default_batches, settings_for
from ddpm_deploy.backends.tensorrt.execution import Engine, Execution
from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec, read_bundle, write_bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable, BundleError, NonFiniteError
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.parity.__main__ import _candidates
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import STATE_SIZE, plan_tables
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

DRIFT = 5e-4  # of samples: nothing pulls a trajectory of random weights back, so rounding grows
SHAPE = (3, 8, 8)
BATCHES = (1, 4)
SETTINGS = BuildSettings(batches=BATCHES)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "580.65.06")
SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
LABELS = np.array([0, 1, 2, 1, 0, 2, 1, 0, 0])


@pytest.fixture(scope="module")
def bundle(labelled_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The labelled bundle with a `step` graph for TensorRT."""
    import onnx

    from ddpm_deploy.export.signature import step_specs
    from ddpm_deploy.export.step import build_step

    read = read_bundle(labelled_bundle)
    inputs = read.file("denoiser", "fp32").inputs
    size: dict[str, Any] = {"state_size": STATE_SIZE, "learned_variance": False}
    graph = onnx.load_from_string(read.open_bytes(read.file("denoiser", "fp32")))
    made = build_step(graph, inputs=inputs, sample_shape=SHAPE, target="tensorrt", **size).SerializeToString()
    taken, given = step_specs(inputs, SHAPE, **size)
    file = ModelFile("step.fp32.tensorrt.onnx", "step", "fp32", "tensorrt", 20, taken, given)
    manifest = dataclasses.replace(read.manifest, files=(*read.manifest.files, file))
    contents = {f.path: read.open_bytes(f) for f in read.manifest.files} | {file.path: made}
    return write_bundle(tmp_path_factory.mktemp("step") / "bundle", manifest, contents)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime, in the place of the real one."""
    made = fake.make_module(name.replace("-", "_"))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture
def gpu(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[HostDevice]:
    """A machine with a GPU and an empty cache; gives every device that is opened."""
    opened: list[HostDevice] = []

    def open_device(index: int) -> HostDevice:
        opened.append(HostDevice())
        return opened[-1]

    monkeypatch.setattr(driver, "CudaDevice", open_device)
    for place in (backend, builder_module):
        monkeypatch.setattr(place, "find_gpu", lambda index=0: RTX_4090)
    monkeypatch.setenv("DDPM_DEPLOY_CACHE", str(tmp_path / "engines"))
    return opened


@pytest.fixture
def open_engine(name: str, module: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Builds and opens the engine of a role on a host device."""
    monkeypatch.setattr(builder_module, "find_gpu", lambda: None)

    def open_(role: str = "step", settings: BuildSettings = SETTINGS, **change: Any) -> Engine:
        file, adapter = bundle.file(role, "fp32", "tensorrt"), open_adapter(name)
        built = build_engine(adapter, bundle.open_bytes(file), file.inputs, settings, precision="fp32")
        specs = {"inputs": file.inputs, "outputs": file.outputs, **change}
        return Engine(adapter, built.engine, specs["inputs"], specs["outputs"], settings, HostDevice())

    return open_


@pytest.fixture(scope="module")
def denoise(bundle: Bundle) -> Iterator[Callable[..., np.ndarray]]:
    """The network on ONNX Runtime, by itself."""
    with open_backend("onnxruntime", bundle, threads=1) as opened:

        def call(x: np.ndarray, t: np.ndarray) -> np.ndarray:
            return opened.run({"x": x, "t": t, "labels": LABELS[: len(x)]})["prediction"]

        yield call


def plan_of(solver: str, steps: int) -> Plan:
    return make_plan(solver, SCHEDULE, steps, "trailing", "eps", clip=(-1.0, 1.0))


def draw_of(plan: Plan, n: int, **change: Any) -> Draw:
    draw = Draw(
        tables=plan_tables(plan, state_size=STATE_SIZE),
        draws=not plan.is_deterministic,
        seed=7,
        samples=range(n),
        shape=SHAPE,
        x_T=None,
        condition={"labels": LABELS[:n]},
    )
    return dataclasses.replace(draw, **change)


def feeds_of(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 99, n).astype(np.float32)
    return {"x": rng.standard_normal((n, *SHAPE), np.float32), "t": t, "labels": rng.integers(0, 3, n)}


def calls(module: Any, kind: str) -> list[Any]:
    return [call[1] if len(call) == 2 else call[1:] for call in module.calls if call[0] == kind]


# -- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 9])
@pytest.mark.parametrize(("solver", "steps"), [("unipc", 4), ("unipc", 5), ("ddpm", 7), ("ddpm", 60)])
def test_loop_draws_what_the_plan_draws(
    open_engine: Any, denoise: Callable[..., np.ndarray], solver: str, steps: int, n: int
) -> None:
    """Of every bucket: full, padded, and more than the largest."""
    plan, engine = plan_of(solver, steps), open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    expected = plan.run(denoise, initial_noise(7, range(n), SHAPE), noise_source(7, range(n), SHAPE))
    np.testing.assert_allclose(loop.sample(draw_of(plan, n)), expected, rtol=0, atol=DRIFT)
    loop.close()
    assert engine.device.closed
    assert engine.device.used_bytes == 0


def test_plans_do_not_disturb_each_other(open_engine: Any) -> None:
    plan, engine = plan_of("ddpm", 6), open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    first = loop.sample(draw_of(plan, 3))
    x_T = initial_noise(1, range(4), SHAPE)
    given = loop.sample(draw_of(plan_of("unipc", 5), 4, x_T=x_T))
    np.testing.assert_array_equal(loop.sample(draw_of(plan, 3)), first)
    np.testing.assert_array_equal(loop.sample(draw_of(plan_of("unipc", 5), 4, x_T=x_T)), given)


def test_rows_of_a_chunk_are_one_graph_and_contexts_are_bound_once(open_engine: Any, module: Any) -> None:
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    for _ in range(3):
        loop.sample(draw_of(plan_of("unipc", 5), 3))
    assert engine.device.captured == 1
    assert len(calls(module, "context")) == 2
    assert len(calls(module, "shape")) == 2 * len(engine.inputs)
    assert calls(module, "execute") == [4] * (2 + 3 * 5)


def test_each_bucket_runs_in_the_profile_that_is_tuned_for_it(open_engine: Any, module: Any) -> None:
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    loop.sample(draw_of(plan_of("ddim", 2), 5))
    assert calls(module, "profile") == [1, 1, 0, 0]
    assert set(calls(module, "execute")) == {4, 1}


@pytest.mark.parametrize("name", ["tensorrt-rtx"], indirect=True)
def test_engine_that_cannot_be_captured_is_enqueued_row_by_row(
    open_engine: Any, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module.capturable = False
    engine, plan = open_engine(), plan_of("unipc", 5)
    uncaptured = Loop(engine.device, TensorRtEvaluator(engine), BATCHES).sample(draw_of(plan, 3))
    assert engine.device.captured == 0
    assert caplog.text.count("cannot be captured; every row is enqueued anew") == 1
    module.capturable = True
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    np.testing.assert_array_equal(loop.sample(draw_of(plan, 3)), uncaptured)


def test_bucket_that_does_not_fit_is_given_up(open_engine: Any, module: Any) -> None:
    engine, plan = open_engine(), plan_of("unipc", 4)
    whole = Loop(engine.device, TensorRtEvaluator(engine), BATCHES).sample(draw_of(plan, 3))
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    bucket_of_one = loop.sample(draw_of(plan, 1))
    engine.device._room = engine.device.used_bytes + 4 * fake.SCRATCH_BYTES
    np.testing.assert_allclose(loop.sample(draw_of(plan, 3)), whole, rtol=0, atol=DRIFT)
    assert loop.buckets == (1,)
    assert bucket_of_one.shape == (1, *SHAPE)


def test_runtime_that_is_out_of_memory_says_so(open_engine: Any, module: Any) -> None:
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    module.fails["context"] = "[defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(BackendError, match="out of memory: not even a batch of 1 fits"):
        loop.sample(draw_of(plan_of("unipc", 4), 3))
    assert engine.device.used_bytes == 0


def test_output_that_is_not_finite_is_reported_with_its_row(open_engine: Any) -> None:
    engine = open_engine()
    loop = Loop(engine.device, TensorRtEvaluator(engine), BATCHES)
    x_T = initial_noise(0, range(3), SHAPE)
    x_T[1] = np.nan
    with pytest.raises(NonFiniteError, match=r"row 0 .*not finite for samples \[1\]"):
        loop.sample(draw_of(plan_of("ddim", 4), 3, x_T=x_T))


# -- contexts ---------------------------------------------------------------------------------------------------------


def bound(engine: Engine, n: int) -> tuple[Execution, Buffers]:
    """A denoiser's execution on buffers of its own."""
    specs = (*engine.inputs, *engine.outputs)
    shapes = {spec.name: tuple(n if axis == "B" else int(axis) for axis in spec.shape) for spec in specs}
    profile = engine.profile_for(shapes)
    layout: dict[str, Any] = {spec.name: (spec.dtype, shapes[spec.name]) for spec in specs}
    buffers = Buffers(engine.device, layout | {"scratch": (np.uint8, (engine.scratch_bytes(profile),))})
    execution = Execution(engine, profile)
    execution.bind({spec.name: buffers[spec.name] for spec in specs}, buffers["scratch"])
    return execution, buffers


def test_context_computes_on_the_addresses_that_it_is_bound_to(
    open_engine: Any, module: Any, denoise: Callable[..., np.ndarray]
) -> None:
    execution, buffers = bound(open_engine("denoiser"), 3)
    feeds = feeds_of(3) | {"labels": LABELS[:3]}
    for tensor, array in feeds.items():
        buffers.write(tensor, array)
    execution.enqueue()
    np.testing.assert_allclose(buffers.read("prediction"), denoise(feeds["x"], feeds["t"]), rtol=0, atol=DRIFT)
    assert [call[0] for call in module.calls] == ["deserialize", "context", "profile", *["shape"] * 3, "execute"]


def test_batch_chooses_the_profile(open_engine: Any) -> None:
    engine = open_engine("denoiser", BuildSettings(batches=(1, 4, 8)))

    def profile(batch: int) -> int:
        return engine.profile_for({"x": (batch, *SHAPE), "t": (batch,), "labels": (batch,)})

    assert [profile(batch) for batch in range(1, 9)] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert engine.largest_batch == 8
    with pytest.raises(BackendError, match=r"got x \[9, 3, 8, 8\], .*expected at most x \[8, 3, 8, 8\], .*; build for"):
        profile(9)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("context", "cannot make an execution context"),
        ("profile", "cannot select profile 1"),
        ("shape", r"input 'x' cannot have shape \[3, 3, 8, 8\]"),
        ("address", "cannot place tensor 'x'"),
        ("execute", "the execution failed"),
    ],
)
def test_failure_is_a_sentence_with_what_the_runtime_said(
    open_engine: Any, module: Any, name: str, method: str, message: str
) -> None:
    engine = open_engine("denoiser")
    module.fails[method] = "IExecutionContext: Error Code 3:\n API Usage Error"
    with pytest.raises(BackendError, match=rf"^{name} 11.4.0: {message}: IExec.* API Usage Error; \S") as caught:
        bound(engine, 3)[0].enqueue()
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, OutOfDeviceMemory)
    module.fails[method] = ""
    with pytest.raises(BackendError) as caught:
        bound(engine, 3)[0].enqueue()
    assert "API Usage" not in str(caught.value)


@pytest.mark.parametrize("said", ["Error Code 2: OutOfMemory (Requested size was 9)", "cuda failure: out of memory"])
def test_out_of_memory_is_an_error_of_its_own(open_engine: Any, module: Any, said: str) -> None:
    module.fails["execute"] = said
    with pytest.raises(OutOfDeviceMemory, match="the execution failed"):
        bound(open_engine("denoiser"), 1)[0].enqueue()


def test_engine_that_does_not_load_is_to_be_built_again(open_engine: Any, module: Any) -> None:
    module.fails["deserialize"] = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
    with pytest.raises(BackendError, match=r"cannot load the engine: Serialization .* failed; build .* --force"):
        open_engine()


@pytest.mark.parametrize("name", ["tensorrt"], indirect=True)
def test_host_code_is_allowed_to_version_compatible_engines_only(open_engine: Any, module: Any) -> None:
    open_engine()
    open_engine(settings=BuildSettings(version_compatible=True))
    assert calls(module, "deserialize") == [False, True]


def test_engine_of_another_graph_is_refused(open_engine: Any) -> None:
    other = (TensorSpec("picture", ("B", *SHAPE), "float32"),)
    with pytest.raises(BackendError, match="outputs of the engine: got prediction float32, expected picture float32"):
        open_engine("denoiser", outputs=other)


def test_output_larger_than_its_place_is_refused(open_engine: Any) -> None:
    small = (TensorSpec("prediction", ("B", 3, 8, 4), "float32"),)
    with pytest.raises(BackendError, match=r"'prediction': got shape \[2, 3, 8, 8\], expected \[2, 3, 8, 4\]"):
        bound(open_engine("denoiser", outputs=small), 2)


def test_profiler_averages_over_the_calls_and_is_never_captured(open_engine: Any) -> None:
    execution, buffers = bound(open_engine("denoiser"), 2)
    buffers.write("labels", np.zeros(2))
    execution.enqueue()
    assert execution.is_capturable
    times = execution.time_layers()
    assert not execution.is_capturable
    for _ in range(5):
        execution.enqueue()
    assert times.calls == 5
    assert times.average_ms() == {"convolution": 3.0, "everything else": 1.0}


# -- the backend ------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(name: str, gpu: list[HostDevice], bundle: Bundle) -> Iterator[Backend]:
    with open_backend(name, bundle, device="cuda", options={"buckets": BATCHES}) as made:
        yield made


def test_backend_says_what_it_is(opened: Backend, name: str) -> None:
    assert (opened.name, opened.device, opened.precision, opened.threads) == (name, "cuda", "fp32", 1)
    assert not opened.batch_invariant
    assert opened.details["version"] == "11.4.0"
    assert opened.details["placement"] == "on NVIDIA GeForce RTX 4090, compute capability 8.9"
    assert opened.details["loop"] == "resident on the device"


@pytest.mark.parametrize("sizes", [(1, 3, 4, 2), (4, 1), (9, 2)])
def test_batches_of_all_sizes_give_what_the_network_gives(
    opened: Backend, denoise: Callable[..., np.ndarray], sizes: tuple[int, ...]
) -> None:
    for n in sizes:
        feeds = feeds_of(n) | {"labels": LABELS[:n]}
        expected = denoise(feeds["x"], feeds["t"])
        np.testing.assert_allclose(opened.run(feeds)["prediction"], expected, rtol=0, atol=DRIFT)


def test_memory_grows_with_the_batch_and_is_freed(opened: Backend, gpu: list[HostDevice]) -> None:
    device, used = gpu[0], []
    for n in (1, 1, 4, 3, 1):
        opened.run(feeds_of(n))
        used.append(device.used_bytes)
    assert used[0] == used[1] < used[2] == used[3] == used[4]
    opened.close()
    assert [device.used_bytes for device in gpu] == [0, 0]
    assert all(device.closed for device in gpu)
    with pytest.raises(BackendError, match="the backend is closed; open it again"):
        opened.run(feeds_of(1))
    opened.close()


def test_batch_that_does_not_fit_is_an_error_and_smaller_ones_still_work(
    opened: Backend, gpu: list[HostDevice]
) -> None:
    expected = opened.run(feeds_of(1))["prediction"]
    gpu[0]._room = gpu[0].used_bytes + 100
    with pytest.raises(BackendError, match="no room"):
        opened.run(feeds_of(4))
    np.testing.assert_array_equal(opened.run(feeds_of(1))["prediction"], expected)


def test_threads_take_turns(opened: Backend) -> None:
    jobs = [feeds_of(1 + seed % 4, seed) for seed in range(12)]
    serial = [opened.run(job)["prediction"] for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(serial, pool.map(opened.run, jobs), strict=True):
            np.testing.assert_array_equal(one, other["prediction"])


def test_wrong_feeds_are_refused(opened: Backend) -> None:
    with pytest.raises(BackendError, match="feeds: received t, x, expected labels, t, x"):
        opened.run({tensor: array for tensor, array in feeds_of(2).items() if tensor != "labels"})


def test_layers_are_timed_on_request(opened: Any) -> None:
    assert opened.layer_ms(feeds_of(2), calls=3) == {"convolution": 3.0, "everything else": 1.0}
    with pytest.raises(BackendError, match="expected labels, t, x"):
        opened.layer_ms({})
    opened.close()
    with pytest.raises(BackendError, match="the backend is closed"):
        opened.layer_ms(feeds_of(2))


def test_loop_of_the_backend_draws_what_the_plan_draws(opened: Any, denoise: Callable[..., np.ndarray]) -> None:
    plan = plan_of("ddpm", 6)
    expected = plan.run(denoise, initial_noise(7, range(5), SHAPE), noise_source(7, range(5), SHAPE))
    np.testing.assert_allclose(opened.loop.sample(draw_of(plan, 5)), expected, rtol=0, atol=DRIFT)


def test_engines_are_built_once_and_found_again(
    name: str, gpu: list[HostDevice], module: Any, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ddpm_deploy")
    for _ in range(2):
        open_backend(name, bundle, device="cuda", options={"buckets": BATCHES}).close()
    assert module.builds == 2
    assert caplog.text.count("building the engine") == 2
    assert f"denoiser fp32 on {name} 11.4.0: building the engine, for batches up to 4" in caplog.text
    open_backend(name, bundle, device="cuda", options={"buckets": (1, 2)}).close()
    assert module.builds == 4


def test_bundle_without_a_step_graph_is_driven_by_the_host(
    name: str, gpu: list[HostDevice], labelled_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_backend(name, read_bundle(labelled_bundle), device="cuda") as made:
        assert getattr(made, "loop", None) is None
        assert "has no step fp32 for tensorrt" in made.details["loop"]
    assert "driven by the host" in caplog.text


def test_loop_can_be_left_out(name: str, gpu: list[HostDevice], module: Any, bundle: Bundle) -> None:
    with open_backend(name, bundle, device="cuda", options={"loop": False}) as made:
        assert made.details["loop"] == "driven by the host, as asked for"
    assert module.builds == 1


@pytest.mark.parametrize("role", ["step", "denoiser"])
def test_failure_on_opening_leaves_nothing_behind(
    name: str, gpu: list[HostDevice], module: Any, bundle: Bundle, role: str
) -> None:
    module.fails["deserialize"] = "no"
    with pytest.raises(BackendError, match="load the engine"):
        open_backend(name, bundle, role=role, device="cuda")
    assert gpu
    assert all(device.closed for device in gpu)


@pytest.mark.parametrize("buckets", [(), (0,), "8", (1, 2.5)])
def test_wrong_buckets_are_refused(name: str, gpu: list[HostDevice], bundle: Bundle, buckets: Any) -> None:
    with pytest.raises(ValueError, match="options: buckets: got"):
        open_backend(name, bundle, device="cuda", options={"buckets": buckets})
    with pytest.raises(ValueError, match="has no 'compile'"):
        open_backend(name, bundle, device="cuda", options={"compile": True})


def test_precision_without_a_file_is_refused_naming_what_there_is(
    name: str, gpu: list[HostDevice], bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match="has no denoiser fp16 for tensorrt; it has denoiser fp32"):
        open_backend(name, bundle, precision="fp16", device="cuda")


@pytest.mark.parametrize(
    ("shape", "batches"),
    [((3, 32, 32), (1, 8, 32, 64, 256)), ((3, 64, 64), (1, 8, 32, 64)), ((3, 256, 256), (1, 8)), ((9, 999, 999), (1,))],
)
def test_larger_samples_get_smaller_batches(shape: tuple[int, ...], batches: tuple[int, ...]) -> None:
    assert default_batches(shape) == batches


def test_free_sizes_are_those_that_the_bundle_was_trained_for(bundle: Bundle) -> None:
    free = (TensorSpec("x", ("B", 3, "H", "W"), "float32"), TensorSpec("t", ("B",), "float32"))
    file = dataclasses.replace(bundle.file("denoiser", "fp32"), inputs=free)
    settings = settings_for(bundle, file, (4, 1))
    assert settings.axes == (("H", (8, 8, 8)), ("W", (8, 8, 8)))
    assert settings.batches == (1, 4)


# -- machines ---------------------------------------------------------------------------------------------------------


def test_cpu_is_refused_in_one_sentence(name: str, bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match=f"^{name}: got device 'cpu', expected 'cuda': .* NVIDIA GPU only$"):
        open_backend(name, bundle)


@pytest.mark.skipif(find_gpu() is not None, reason="with a GPU it may open")
def test_machine_without_a_gpu_is_named_in_one_sentence(name: str, bundle: Bundle) -> None:
    """The real runtimes, where they are installed."""
    sentence = "engines run on an NVIDIA GPU, and this machine shows none"
    with pytest.raises(BackendUnavailable, match=f"^{name}: cuda: {sentence}; use another backend here") as caught:
        open_backend(name, bundle, device="cuda")
    assert "\n" not in str(caught.value)
    found = available_backends()[name]
    assert (found.available, found.reason) == (False, sentence)
    assert found.remedy


@pytest.mark.skipif(find_gpu() is not None, reason="with a GPU it may load")
def test_real_runtime_without_a_gpu_loads_no_engine_and_says_why() -> None:
    try:
        adapter = open_adapter("tensorrt-rtx")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with pytest.raises((BackendError, BackendUnavailable), match=r"^tensorrt-rtx [\d.]+: [^\n]+; [^\n]+$"):
        Engine(adapter, b"engine", (), (), SETTINGS, HostDevice())


def test_gpu_that_the_runtime_does_not_know_is_named(
    name: str, gpu: list[HostDevice], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = Gpu("NVIDIA H100", "9.0", "580.65.06")
    monkeypatch.setattr(backend, "find_gpu", lambda index=0: hopper)
    found = available_backends()[name]
    assert found.available == (name == "tensorrt")
    if not found.available:
        with pytest.raises(BackendUnavailable, match=r"NVIDIA H100 has compute capability 9.0, expected one of 7.5"):
            open_backend(name, bundle, device="cuda")


def test_runtime_that_is_there_is_available_on_cuda_alone(name: str, gpu: list[HostDevice]) -> None:
    found = available_backends()[name]
    assert (found.available, found.version, found.devices, found.precisions) == (True, "11.4.0", ("cuda",), ("fp32",))


def test_parity_measures_it_unasked_on_cuda_alone(name: str, gpu: list[HostDevice]) -> None:
    assert (name, "fp32") not in _candidates(None, "cpu")
    assert (name, "fp32") in _candidates(None, "cuda")


def test_runtime_that_is_missing_is_reported_with_its_remedy(
    name: str, gpu: list[HostDevice], bundle: Bundle, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module.__name__, None)
    found = available_backends()[name]
    assert not found.available
    assert str(found.reason).startswith("is not installed")
    assert "pip install" in str(found.remedy)
    with pytest.raises(BackendUnavailable, match=rf"^{name}: .*; run pip install"):
        open_backend(name, bundle, device="cuda")


def test_probe_computes_on_the_gpu_and_names_it(name: str, gpu: list[HostDevice]) -> None:
    assert probe(name, "cuda") == "on NVIDIA GeForce RTX 4090, compute capability 8.9"
    assert gpu[0].closed
