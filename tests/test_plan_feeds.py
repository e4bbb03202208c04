"""A plan as the arrays that graphs take."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.noise import noise_source
from ddpm_deploy.one_file import sampler_feeds
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import plan_feeds, plan_tables
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

SHAPE = (2, 6)
X_T = np.ones((2, *SHAPE), np.float32)


def plan_of(solver: str, steps: int = 4, **options: object) -> Plan:
    return make_plan(solver, NoiseSchedule.linear(100, 1e-3, 0.2), steps, **options)


def sampler_inputs(K: int | str, *noise_axes: int | str) -> list[TensorSpec]:
    shapes = {"x_T": ("B", *SHAPE), "update": ("N", K, "K_plus_3"), "noise": ("N", *noise_axes)}
    return [TensorSpec(name, shape, "float32") for name, shape in shapes.items()]


def test_tables_are_the_plan_in_float32_with_infinite_bounds_where_it_does_not_clip() -> None:
    plan = plan_of("unipc", order=2)
    tables = plan_tables(plan)
    assert {name: table.shape for name, table in tables.items()} == {
        "t": (4,),
        "predict": (4, 2),
        "clip": (4, 2),
        "update": (4, 4, 7),
    }
    assert {table.dtype for table in tables.values()} == {np.dtype(np.float32)}
    assert tables["clip"].tolist() == [[-np.inf, np.inf]] * 4
    np.testing.assert_allclose(tables["update"], plan.update, rtol=1e-7)


def test_a_padded_state_changes_nothing() -> None:
    plan = plan_of("heun", clip=(-1.0, 1.0))
    tables = plan_tables(plan, state_size=5)
    names = (*plan.state, "idle1", "idle2")
    padded = Plan(plan.solver, names, plan.t, plan.predict, plan.clip, tables["update"])
    x_T = np.random.default_rng(0).standard_normal((2, 3))
    run = [p.run(lambda x, t: np.tanh(x), x_T) for p in (plan, padded)]
    np.testing.assert_allclose(run[1], run[0], rtol=1e-5)


def test_a_plan_without_variance_leaves_the_noise_of_a_network_with_one_as_it_is() -> None:
    tables = plan_tables(plan_of("unipc"), learned_variance=True)
    assert tables["log_variance"].tolist() == [[0, 0]] * 4
    learned = plan_of("ddpm", variance="learned")
    np.testing.assert_allclose(plan_tables(learned, learned_variance=True)["log_variance"], learned.log_variance)


def test_noise_has_an_axis_for_the_rows_and_one_for_the_batch() -> None:
    ddpm = plan_of("ddpm")
    assert plan_feeds(plan_of("ddim"), 2)["noise"].shape == (4, 1, 1, 1)
    assert plan_feeds(ddpm, 2, np.zeros(6))["noise"].shape == (4, 1, 1, 6)
    source = noise_source(0, range(3), SHAPE)
    drawn = plan_feeds(ddpm, 2, source)["noise"]
    np.testing.assert_array_equal(drawn[:3], np.stack([source(row) for row in range(3)]))
    assert (drawn.dtype, drawn.shape, drawn.flags.c_contiguous) == (np.float32, (4, 3, *SHAPE), True)


def test_feeds_take_the_shapes_that_the_graph_wants() -> None:
    compact = sampler_feeds(sampler_inputs("K", "noise_0", "noise_1", "noise_2"), plan_of("ddim"), X_T)
    assert (compact["update"].shape, compact["noise"].shape) == ((4, 1, 4), (4, 1, 1, 1))
    full = sampler_feeds(sampler_inputs(5, "B", *SHAPE), plan_of("ddim"), X_T)
    assert (full["update"].shape, full["noise"].shape) == ((4, 5, 8), (4, *X_T.shape))


def test_what_does_not_fit_is_refused() -> None:
    free, ddpm = sampler_inputs("K", "noise_0", "noise_1", "noise_2"), plan_of("ddpm")
    for shape in ((4, 3, *SHAPE), (3, 2, *SHAPE), (1, 4, 2, *SHAPE)):
        with pytest.raises(ValueError, match=r"noise: got shape \("):
            sampler_feeds(free, ddpm, X_T, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="noise: got None, but the plan of 'ddpm' draws noise"):
        plan_feeds(ddpm, 2)
    with pytest.raises(ValueError, match="learned variance, but the graph predicts none"):
        plan_tables(plan_of("ddpm", variance="learned"))
    with pytest.raises(ValueError, match="a state of 5 images, expected at most 2; export with state_size=5"):
        plan_tables(plan_of("unipc", order=3), state_size=2)
    with pytest.raises(ValueError, match="got x_T, as of a graph unrolled for one plan"):
        sampler_feeds(free[:1], ddpm, X_T)


def test_feeds_need_numpy_only() -> None:
    code = (
        "import sys, ddpm_deploy.one_file\n"
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
