"""Guidance in the `step` and `sampler` graphs: the same picture as the numpy loop draws from the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_denoisers import close, named, plan_of, session, toy, toy_inputs

from ddpm_deploy.backends import Backend
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.backends.openvino import OpenVinoBackend
from ddpm_deploy.bundle import Condition, read_bundle
from ddpm_deploy.export.sampler_graph import build_sampler
from ddpm_deploy.export.signature import sampler_specs, step_specs, unrolled_specs
from ddpm_deploy.export.step import build_step
from ddpm_deploy.export.unrolled import build_unrolled
from ddpm_deploy.guidance import Guidance, guided, without
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sample_with_graph, sampler_feeds
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import STATE_SIZE, plan_feeds, plan_tables

PICTURE, SIGNAL = (3, 8, 8), (2, 6)
LABELS = {"labels": np.array([0, 2, 1])}
WEIGHTS = np.float32([3.0, 0.0, 1.0])
INTERVAL = Guidance(WEIGHTS, (20.0, 80.0))
SPARING = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino"}
BACKENDS: dict[str, Any] = {"onnxruntime": OnnxRuntimeBackend, "openvino": OpenVinoBackend}


@pytest.fixture(scope="module")
def unet(guided_bundle: Path) -> Any:
    return onnx.load(guided_bundle / "denoiser.fp32.onnx"), read_bundle(guided_bundle).manifest.files[0].inputs


def loop(denoiser: onnx.ModelProto, condition: Any, known: Any, guidance: Guidance, channels: int) -> Any:
    """The guided denoiser of the numpy loop around a bare session."""
    opened = session(denoiser)

    def evaluate(x: Any, t: Any, given: Any) -> Any:
        return opened.run(None, {"x": x, "t": t, **given})[0]

    return guided(evaluate, condition, without(condition, known), guidance, channels)


def labels_loop(denoiser: onnx.ModelProto, guidance: Guidance = INTERVAL) -> Any:
    return loop(denoiser, LABELS, (Condition("labels", (), "int64", tuple("abc"), 3),), guidance, 3)


def opened(runtime: str, model: onnx.ModelProto, specs: Any) -> Backend:
    backend: Backend = BACKENDS[runtime].from_bytes(model.SerializeToString(), *specs, threads=1)
    return backend


@pytest.mark.parametrize(("runtime", "target"), [*((name, "onnx") for name in BACKENDS), *SPARING.items()])
@pytest.mark.parametrize("name", ["ddim-4", "unipc-12", "ddpm-12"])
def test_the_sampler_draws_what_the_loop_draws(runtime: str, target: str, name: str, unet: Any) -> None:
    plan, x_T = named(name), initial_noise(0, range(3), PICTURE)
    noise = None if plan.is_deterministic else noise_source(0, range(3), PICTURE)
    options: dict[str, Any] = {"inputs": unet[1], "sample_shape": PICTURE, "learned_variance": False, "target": target}
    model = build_sampler(unet[0], default_plan=None, nulls={"labels": 3}, **options)
    with opened(runtime, model, sampler_specs(guided=True, **options)) as backend:
        for guidance in (INTERVAL, Guidance(np.float32([2.5] * 3))):
            expected = plan.run(labels_loop(unet[0], guidance), x_T, noise)
            found = sample_with_graph(backend, plan, x_T, noise, LABELS, guidance.rows(plan.t))
            close(found, expected, 1e-4)
        plain = sample_with_graph(backend, plan, x_T, noise, LABELS)
        close(plain, plan.run(labels_loop(unet[0], Guidance(np.ones(3, np.float32))), x_T, noise), 1e-4)
        one = sample_with_graph(backend, plan, x_T, noise, LABELS, 2.5)
        np.testing.assert_array_equal(one, found)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_the_step_draws_what_the_loop_draws(runtime: str, unet: Any) -> None:
    plan, x_T = named("unipc-12"), initial_noise(0, range(3), PICTURE)
    options: dict[str, Any] = {"inputs": unet[1], "sample_shape": PICTURE, "state_size": STATE_SIZE}
    model = build_step(unet[0], learned_variance=False, target="tensorrt", nulls={"labels": 3}, **options)
    with opened(runtime, model, step_specs(learned_variance=False, guided=True, **options)) as backend:
        state = run_steps(backend, plan, x_T, INTERVAL, LABELS)
    close(state[:, 0], plan.run(labels_loop(unet[0]), x_T), 1e-4)


def run_steps(backend: Backend, plan: Plan, x_T: Any, guidance: Guidance, condition: Any, noise: Any = None) -> Any:
    learned = any(spec.name == "log_variance" for spec in backend.inputs)
    tables, weights = plan_tables(plan, state_size=STATE_SIZE, learned_variance=learned), guidance.rows(plan.t)
    state = np.repeat(x_T[:, None], STATE_SIZE, axis=1)
    for row in range(len(plan)):
        z = np.zeros_like(x_T) if noise is None or not plan.draws_noise[row] else noise(row)
        steering = {name: table[[row] * len(x_T)] for name, table in tables.items()}
        feeds = {"state": state, "noise": z, **steering, **condition, "guidance": weights[row]}
        state = backend.run(feeds)["next_state"]
    return state


@pytest.mark.parametrize("graph", ["step", "sampler", "unrolled"])
@pytest.mark.parametrize("runtime", BACKENDS)
def test_a_learned_variance_is_guided_as_the_loop_guides_it(runtime: str, graph: str) -> None:
    denoiser, inputs = toy(SIGNAL, learned=True, steered=True), toy_inputs(SIGNAL, steered=True)
    steer, plan = {"steer": np.float32([1, -1, 0.5])}, plan_of("ddpm", 8, variance="learned")
    x_T, noise = initial_noise(1, range(3), SIGNAL), noise_source(1, range(3), SIGNAL)
    known = (Condition("steer", (), "float32", null=0.25),)
    expected = plan.run(loop(denoiser, steer, known, INTERVAL, SIGNAL[0]), x_T, noise)
    common: dict[str, Any] = {"inputs": inputs, "sample_shape": SIGNAL}
    nulls = {"steer": 0.25}
    if graph == "step":
        model = build_step(
            denoiser, state_size=STATE_SIZE, learned_variance=True, target="tensorrt", nulls=nulls, **common
        )
        specs = step_specs(state_size=STATE_SIZE, learned_variance=True, guided=True, **common)
        with opened(runtime, model, specs) as backend:
            found = run_steps(backend, plan, x_T, INTERVAL, steer, noise)[:, 0]
    elif graph == "sampler":
        options = {"learned_variance": True, "target": "onnx", **common}
        model = build_sampler(denoiser, default_plan=None, nulls=nulls, **options)
        with opened(runtime, model, sampler_specs(guided=True, **options)) as backend:
            found = sample_with_graph(backend, plan, x_T, noise, steer, INTERVAL.rows(plan.t))
    else:
        model = build_unrolled(denoiser, plan=plan, target="onnxruntime-cuda", nulls=nulls, **common)
        specs = unrolled_specs(rows=8, draws_noise=True, target="onnxruntime-cuda", guided=True, **common)
        z = np.stack([noise(row) for row in range(8)])
        with opened(runtime, model, specs) as backend:
            found = backend.run({"x_T": x_T, "noise": z, **steer, "guidance": INTERVAL.rows(plan.t)})["samples"]
    close(found, expected, 1e-5)


@pytest.mark.parametrize(("target", "batches"), [("onnxruntime-cpu", [4, 2, 4, 2]), ("onnx", [4] * 4)])
def test_on_cpus_a_row_whose_weights_are_all_1_evaluates_no_second_half(target: str, batches: list[int]) -> None:
    plan, x_T = named("ddim-4"), initial_noise(0, range(2), SIGNAL)
    denoiser, inputs = toy(SIGNAL, steered=True), toy_inputs(SIGNAL, steered=True)
    (made,) = denoiser.graph.node[-1].output
    denoiser.graph.node[-1].output[0] = "bare"
    denoiser.graph.node.extend([  # a prediction that tells how many samples were evaluated
        onnx.helper.make_node("Shape", ["bare"], ["rows"], start=0, end=1),
        onnx.helper.make_node("Cast", ["rows"], ["count"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["bare", "none"], ["nothing"]),
        onnx.helper.make_node("Add", ["nothing", "count"], [made]),
    ])  # fmt: skip
    denoiser.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "none"))
    model = build_sampler(denoiser, inputs=inputs, sample_shape=SIGNAL, learned_variance=False, target=target,
                          default_plan=None, nulls={"steer": 0.0})  # fmt: skip
    plan = Plan("sum", ("x",), plan.t, [[0.0, 1.0]] * 4, [[-np.inf, np.inf]] * 4, [[[0.0, 1.0, 0.0, 0.0]]] * 4)
    for rows in range(1, 5):
        part = Plan("last", ("x",), *(table[:rows] for table in (plan.t, plan.predict, plan.clip, plan.update)))
        weights = np.float32([[2, 1], [1, 1], [1, 0], [1, 1]])[:rows]
        feeds = {**plan_feeds(part, 2), "x_T": x_T, "steer": np.zeros(2, np.float32), "guidance": weights}
        (found,) = session(model).run(None, feeds)
        np.testing.assert_array_equal(found, np.full_like(found, batches[rows - 1]))


def test_without_weights_the_sampler_draws_by_the_condition_as_it_is(unet: Any) -> None:
    plan, x_T = named("ddim-4"), initial_noise(0, range(3), PICTURE)
    options: dict[str, Any] = {"inputs": unet[1], "sample_shape": PICTURE, "learned_variance": False}
    model = build_sampler(unet[0], default_plan=plan, target="onnxruntime-cpu", nulls={"labels": 3}, **options)
    (found,) = session(model).run(None, {"x_T": x_T, **LABELS})
    close(found, plan.run(labels_loop(unet[0], Guidance(np.ones(3, np.float32))), x_T), 1e-4)


def test_weights_are_fed_in_the_shape_that_the_graph_takes_or_refused() -> None:
    plan, x_T = named("ddim-4"), np.zeros((2, *SIGNAL), np.float32)
    options: dict[str, Any] = {"inputs": toy_inputs(SIGNAL, True), "sample_shape": SIGNAL, "learned_variance": False}
    free, _ = sampler_specs(target="onnx", guided=True, **options)
    fixed, _ = sampler_specs(target="tensorrt", guided=True, **options)
    assert sampler_feeds(free, plan, x_T, guidance=2.0)["guidance"].shape == (4, 1)
    assert sampler_feeds(fixed, plan, x_T, guidance=2.0)["guidance"].shape == (4, 2)
    assert sampler_feeds(free, plan, x_T, guidance=[1.0, 2.0])["guidance"].tolist() == [[1, 2]] * 4
    with pytest.raises(ValueError, match=r"guidance: got shape \(3,\), expected one that broadcasts to \(4, 2\)"):
        sampler_feeds(free, plan, x_T, guidance=[1.0, 2.0, 3.0])
    plain, _ = sampler_specs(target="onnx", **options)
    with pytest.raises(ValueError, match="guidance: got a weight, but the graph takes none"):
        sampler_feeds(plain, plan, x_T, guidance=2.0)
    assert "guidance" not in sampler_feeds(plain, plan, x_T)
