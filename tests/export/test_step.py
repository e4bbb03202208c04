"""The `step` graph: each sample of the batch at its own row of its own plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_denoisers import denoise_with, session, toy, toy_inputs

from ddpm_deploy.backends.openvino import OpenVinoBackend
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.signature import step_specs
from ddpm_deploy.export.step import build_step
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import STATE_SIZE, plan_tables
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, make_plan

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
SIGNAL = (2, 6)


def step_of(denoiser: onnx.ModelProto, shape: tuple[int, ...], **options: Any) -> onnx.ModelProto:
    settings = {"inputs": toy_inputs(shape), "state_size": STATE_SIZE, "learned_variance": False, "target": "tensorrt"}
    return build_step(denoiser, sample_shape=shape, **{**settings, **options})


def plan_of(solver: str, steps: int, **options: Any) -> Plan:
    return make_plan(solver, SCHEDULE, steps, "trailing", "eps", **{"clip": (-1.0, 1.0), **options})


def run_steps(opened: Any, plan: Plan, x_T: np.ndarray, noise: Any = None, learned: bool = False, **feeds: Any) -> Any:
    """Apply the graph once for each row; gives every x0, and the state at the end."""
    tables = plan_tables(plan, state_size=STATE_SIZE, learned_variance=learned)
    state, previews = np.repeat(x_T[:, None], STATE_SIZE, axis=1), []
    for row in range(len(plan)):
        z = noise(row) if noise is not None and plan.draws_noise[row] else np.zeros_like(x_T)
        steering = {name: table[[row] * len(x_T)] for name, table in tables.items()}
        state, x0, finite = opened.run(None, {"state": state, "noise": z, **steering, **feeds})
        assert finite.tolist() == [1.0] * len(x_T)
        previews.append(x0)
    return previews, state


@pytest.fixture(scope="module")
def unet(tiny_bundle: Path) -> Any:
    bundle = read_bundle(tiny_bundle)
    return onnx.load(tiny_bundle / "denoiser.fp32.onnx"), bundle.manifest.files[0].inputs


@pytest.fixture(scope="module")
def unet_step(unet: Any) -> onnx.ModelProto:
    return step_of(unet[0], (3, 8, 8), inputs=unet[1])


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "ddpm"])
def test_steps_of_a_unet_give_the_previews_and_the_picture_of_the_plan(unet: Any, unet_step: Any, solver: str) -> None:
    plan, x_T = plan_of(solver, 4), initial_noise(0, range(3), (3, 8, 8))
    noise = noise_source(0, range(3), (3, 8, 8))
    frames = list(plan.frames(denoise_with(unet[0]), x_T, noise))
    previews, state = run_steps(session(unet_step), plan, x_T, noise)
    for frame, x0 in zip(frames, previews, strict=True):
        np.testing.assert_allclose(x0, frame.x0, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state[:, 0], frames[-1].x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), SIGNAL, (1, 4, 4)])
def test_samples_of_any_rank(shape: tuple[int, ...]) -> None:
    plan, x_T = plan_of("unipc", 5, order=3, clip=None), initial_noise(1, range(2), shape)
    _, state = run_steps(session(step_of(toy(shape), shape)), plan, x_T)
    np.testing.assert_allclose(state[:, 0], plan.run(denoise_with(toy(shape)), x_T), rtol=1e-5, atol=1e-5)


def test_samples_of_one_batch_may_be_at_different_rows_of_different_plans() -> None:
    opened, x = session(step_of(toy(SIGNAL), SIGNAL)), initial_noise(2, range(2), SIGNAL)
    one, other = (plan_tables(plan_of(*p), state_size=STATE_SIZE) for p in (("ddim", 3), ("unipc", 7)))
    state, noise = np.repeat(x[:, None], STATE_SIZE, axis=1), np.zeros_like(x)
    mixed = {name: np.stack([one[name][2], other[name][4]]) for name in one}
    together = opened.run(None, {"state": state, "noise": noise, **mixed})
    for i in range(2):
        alone = {name: table[i : i + 1] for name, table in mixed.items()}
        expected = opened.run(None, {"state": state[i : i + 1], "noise": noise[i : i + 1], **alone})
        for a, b in zip(together, expected, strict=True):
            np.testing.assert_array_equal(a[i], b[0])


def test_a_learned_variance_scales_the_noise() -> None:
    denoiser, shape = toy(SIGNAL, learned=True), SIGNAL
    plan, x_T = plan_of("ddpm", 6, variance="learned"), initial_noise(3, range(4), shape)
    noise = noise_source(3, range(4), shape)
    opened = session(step_of(denoiser, shape, learned_variance=True))
    _, state = run_steps(opened, plan, x_T, noise, learned=True)
    np.testing.assert_allclose(state[:, 0], plan.run(denoise_with(denoiser), x_T, noise), rtol=1e-5, atol=1e-5)


def test_an_absurd_variance_does_not_touch_a_row_that_draws_no_noise() -> None:
    shape, denoiser = SIGNAL, toy(SIGNAL, learned=True)
    tables = plan_tables(plan_of("ddpm", 1, variance="learned"), state_size=1, learned_variance=True)
    tables["log_variance"][:] = 1e4
    x = initial_noise(0, range(1), shape)
    opened = session(step_of(denoiser, shape, learned_variance=True, state_size=1))
    state, _, finite = opened.run(None, {"state": x[:, None], "noise": np.zeros_like(x), **tables})
    assert finite == 1
    assert np.isfinite(state).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_finite_names_the_sample_whose_prediction_is_not_though_its_preview_is_clipped(poison: float) -> None:
    shape = (3, 4)
    denoiser = toy(shape, steered=True)
    tanh = next(node for node in denoiser.graph.node if node.op_type == "Tanh")
    tanh.op_type = "Identity"
    plan = plan_tables(plan_of("ddim", 2), state_size=1)
    opened = session(step_of(denoiser, shape, inputs=toy_inputs(shape, steered=True), state_size=1))
    x = initial_noise(0, range(3), shape)
    steer = np.array([0, poison, 0], np.float32)
    feeds = {name: table[[0] * 3] for name, table in plan.items()} | {"steer": steer, "noise": np.zeros_like(x)}
    state, x0, finite = opened.run(None, {"state": x[:, None], **feeds})
    assert finite.tolist() == [1.0, 0.0, 1.0]
    assert np.isfinite(state[[0, 2]]).all()
    assert np.abs(x0[[0, 2]]).max() <= 1


def test_weights_that_are_not_a_number_are_found() -> None:
    denoiser, x = toy(SIGNAL, weight=np.nan), initial_noise(0, range(2), SIGNAL)
    tables = {name: table[[0, 0]] for name, table in plan_tables(plan_of("ddim", 2), state_size=1).items()}
    opened = session(step_of(denoiser, SIGNAL, state_size=1))
    assert opened.run(["finite"], {"state": x[:, None], "noise": x, **tables})[0].tolist() == [0.0, 0.0]


def test_openvino_gives_the_same(unet_step: onnx.ModelProto, unet: Any) -> None:
    inputs, outputs = step_specs(unet[1], (3, 8, 8), state_size=STATE_SIZE, learned_variance=False)
    tables = plan_tables(plan_of("unipc", 5), state_size=STATE_SIZE)
    rng = np.random.default_rng(0)
    feeds = {name: table[[2, 4, 1]] for name, table in tables.items()}
    feeds["state"] = rng.standard_normal((3, STATE_SIZE, 3, 8, 8), np.float32)
    feeds["noise"] = rng.standard_normal((3, 3, 8, 8), np.float32)
    expected = session(unet_step).run([spec.name for spec in outputs], feeds)
    with OpenVinoBackend.from_bytes(unet_step.SerializeToString(), inputs, outputs, threads=1) as backend:
        got = backend.run(feeds)
    for spec, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got[spec.name], array, rtol=0, atol=1e-4)


def test_the_graph_is_valid_and_its_signature_is_the_one_that_is_told(unet_step: onnx.ModelProto, unet: Any) -> None:
    onnx.checker.check_model(unet_step, full_check=True)
    inputs, outputs = step_specs(unet[1], (3, 8, 8), state_size=STATE_SIZE, learned_variance=False)
    opened = session(unet_step)
    assert [(a.name, tuple(a.shape)) for a in opened.get_inputs()] == [(s.name, s.shape) for s in inputs]
    assert [(a.name, tuple(a.shape)) for a in opened.get_outputs()] == [(s.name, s.shape) for s in outputs]
    assert {a.type for a in (*opened.get_inputs(), *opened.get_outputs())} == {"tensor(float)"}


def test_no_matrix_product_is_added_and_no_shape_is_asked_for() -> None:
    graph = step_of(toy(SIGNAL), SIGNAL).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("MatMul") == 1
    assert not {"Shape", "Expand", "Einsum", "Gemm"} & set(ops)


def test_the_fixed_state_holds_every_solver() -> None:
    sizes = [len(make_plan(name, SCHEDULE, 8, "trailing", "eps").state) for name in SOLVERS if name != "lcm"]
    orders = [len(plan_of(name, 8, order=order).state) for name, order in (("unipc", 3), ("ipndm", 4), ("deis", 3))]
    assert max(sizes + orders) == STATE_SIZE


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target: got 'torch', expected one of onnx, "):
        step_of(toy(SIGNAL), SIGNAL, target="torch")
    with pytest.raises(ExportError, match=r"learned_variance: got True"):
        step_of(toy(SIGNAL), SIGNAL, learned_variance=True)
    with pytest.raises(ExportError, match=r"x: got shape \['B', 2, 6\], expected \['B', 2, 7\]"):
        step_of(toy(SIGNAL), (2, 7), inputs=toy_inputs(SIGNAL))
    old = toy(SIGNAL)
    old.opset_import[0].version = 17
    with pytest.raises(ExportError, match="got opset 17, expected 18 or later"):
        step_of(old, SIGNAL)
    with pytest.raises(ValueError, match=r"a state of 5 images, expected at most 2"):
        plan_tables(plan_of("unipc", 5, order=3), state_size=2)
