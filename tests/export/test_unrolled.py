"""The unrolled `sampler` graph: a fixed plan, no control flow, one set of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_denoisers import close, denoise_with, named, plan_of, session, toy, toy_inputs, weight_bytes

from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import TensorSpec, read_bundle
from ddpm_deploy.export.signature import unrolled_specs
from ddpm_deploy.export.unrolled import build_unrolled
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sample_with_graph
from ddpm_deploy.plan.feeds import plan_feeds

PICTURE, SIGNAL = (3, 8, 8), (2, 6)
Unet = tuple[onnx.ModelProto, tuple[TensorSpec, ...]]


@pytest.fixture(scope="module")
def unet(tiny_bundle: Path) -> Unet:
    return onnx.load(tiny_bundle / "denoiser.fp32.onnx"), read_bundle(tiny_bundle).manifest.files[0].inputs


@pytest.mark.parametrize("name", ["ddim-1", "heun-4", "unipc-12", "unipc-4-half-clipped", "ddpm-4-unclipped"])
def test_unrolled_equals_the_loop(unet: Unet, name: str) -> None:
    plan, x_T = named(name), initial_noise(0, range(2), PICTURE)
    model = build_unrolled(unet[0], inputs=unet[1], sample_shape=PICTURE, plan=plan, target="onnxruntime-cuda")
    onnx.checker.check_model(model, full_check=True)
    assert not {"Scan", "Loop", "If"} & {node.op_type for node in model.graph.node}
    assert weight_bytes(model.graph) == pytest.approx(weight_bytes(unet[0].graph), rel=0.1)
    noise = None if plan.is_deterministic else plan_feeds(plan, 3, noise_source(0, range(2), PICTURE))["noise"]
    feeds = {"x_T": x_T} if noise is None else {"x_T": x_T, "noise": noise}
    close(session(model).run(None, feeds)[0], plan.run(denoise_with(unet[0]), x_T, noise), 1e-4)


@pytest.mark.parametrize("learned", [True, False])
def test_unrolled_takes_a_learned_variance_and_conditions(learned: bool) -> None:
    denoiser, inputs = toy(SIGNAL, learned=True, steered=True), toy_inputs(SIGNAL, steered=True)
    plan = plan_of("ddpm", 5, variance="learned") if learned else plan_of("dpmpp_2m_sde", 5)
    x_T, steer = initial_noise(0, range(2), SIGNAL), {"steer": np.array([-1, 1], np.float32)}
    noise = np.random.default_rng(0).standard_normal((5, 1, *SIGNAL)).astype(np.float32)
    model = build_unrolled(denoiser, inputs=inputs, sample_shape=SIGNAL, plan=plan, target="onnxruntime-cuda")
    expected = plan.run(denoise_with(denoiser, steer, None if learned else 2), x_T, noise)
    specs = unrolled_specs(inputs, SIGNAL, rows=5, draws_noise=True, target="onnxruntime-cuda")
    with OnnxRuntimeBackend.from_bytes(model.SerializeToString(), *specs, threads=1) as backend:
        close(backend.run({"x_T": x_T, "noise": noise, **steer})["samples"], expected)
        with pytest.raises(ValueError, match="got x_T, noise, steer, as of a graph unrolled for one plan"):
            sample_with_graph(backend, plan, x_T, noise, steer)


def test_unrolled_is_for_short_plans_and_runtimes_that_capture() -> None:
    settings = {"inputs": toy_inputs(SIGNAL), "sample_shape": SIGNAL}
    with pytest.raises(ValueError, match="got 17 rows, expected at most 16; use build_sampler"):
        build_unrolled(toy(SIGNAL), **settings, plan=plan_of("ddim", 17), target="tensorrt")
    with pytest.raises(ValueError, match="got 'openvino', expected one of onnxruntime-cuda, tensorrt"):
        build_unrolled(toy(SIGNAL), **settings, plan=plan_of("ddim", 4), target="openvino")
    plan = plan_of("ddpm", 4, variance="learned")
    with pytest.raises(ValueError, match="learned variance, but the denoiser predicts none"):
        build_unrolled(toy(SIGNAL), **settings, plan=plan, target="tensorrt")
