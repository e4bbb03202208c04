"""make_plan: every solver at every count, and what it refuses."""

import numpy as np
import pytest
from gaussian_mixture import levels, network
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_deploy.plan import Plan, PlanBuilder
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, make_plan
from ddpm_deploy.spacing import SPACINGS

LINEAR = NoiseSchedule.linear()
SMALL = NoiseSchedule.linear(12, 0.01, 0.5)
ZERO_TERMINAL = NoiseSchedule.from_alphas_cumprod(np.append(SMALL.alphas_cumprod[:-1], 0.0))


# -- every solver, every count ---------------------------------------------------------------------

PLAIN = sorted(SOLVERS)


@pytest.mark.parametrize("solver", PLAIN)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_count_from_one_to_all_runs_and_falls_in_t(solver, spacing):
    level = levels(SMALL.alphas_cumprod)
    x_T = np.random.default_rng(0).standard_normal((2, 3))
    for steps in range(1, SMALL.T + 1):
        plan = make_plan(solver, SMALL, steps=steps, spacing=spacing, clip=(-3.0, 3.0))
        assert np.isfinite(plan.update).all()
        assert plan.nfe == len(plan) == (2 * steps - 1 if solver == "heun" else steps)
        falls = np.diff(plan.t)
        assert np.all(falls <= 0 if solver == "heun" else falls < 0)
        samples = plan.run(network(level), x_T, lambda row: np.full((2, 3), 0.1 * row))
        assert np.isfinite(samples).all()


@settings(max_examples=120, deadline=None)
@given(
    solver=st.sampled_from(PLAIN),
    betas=st.lists(st.floats(1e-4, 0.6), min_size=1, max_size=25),
    kind=st.sampled_from(["eps", "v", "x0"]),
    data=st.data(),
)
def test_any_schedule_and_any_falling_timesteps_give_a_plan_that_runs(solver, betas, kind, data):
    schedule = NoiseSchedule.from_betas(betas)
    tenths = data.draw(st.lists(st.integers(0, 10 * (schedule.T - 1)), min_size=1, max_size=8, unique=True))
    timesteps = np.sort(np.array(tenths, dtype=np.float64) / 10)[::-1]
    plan = make_plan(solver, schedule, timesteps=timesteps, prediction=kind, clip=(-4.0, 4.0))
    np.testing.assert_array_equal(np.unique(plan.t), timesteps[::-1])
    x = plan.run(network(levels(schedule.alphas_cumprod), kind), np.ones((1, 2)), np.zeros(1))
    assert np.isfinite(x).all()
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("solver", PLAIN)
def test_zero_terminal_snr_runs_with_v_and_x0_and_is_refused_with_eps(solver):
    for kind in ("v", "x0"):
        plan = make_plan(solver, ZERO_TERMINAL, steps=6, prediction=kind, clip=(-1.0, 1.0))
        assert plan.t[0] == ZERO_TERMINAL.T - 1
        x = plan.run(lambda x, t: np.tanh(x), np.ones((1, 4)), np.zeros(1))
        assert np.isfinite(x).all()
    with pytest.raises(ValueError, match="prediction: got 'eps' at a timestep with alpha = 0"):
        make_plan(solver, ZERO_TERMINAL, steps=6)


@pytest.mark.parametrize("spacing", sorted(set(SPACINGS) - {"leading"}))
def test_no_spacing_slips_past_the_refusal_of_eps_at_zero_terminal_snr(spacing):
    with pytest.raises(ValueError, match="prediction: got 'eps' at a timestep with alpha = 0"):
        make_plan("ddim", ZERO_TERMINAL, steps=6, spacing=spacing)


@pytest.mark.parametrize("solver", PLAIN)
def test_flow_matching_runs_from_pure_noise(solver):
    plan = make_plan(solver, NoiseSchedule.flow_matching(20), steps=7, prediction="flow")
    assert plan.t[0] == 19
    assert np.isfinite(plan.run(lambda x, t: np.tanh(x), np.ones((1, 4)), np.zeros(1))).all()


# -- make_plan refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps: got 0, expected a whole number from 1 to 1000"),
        ({"steps": 1001}, r"steps: got 1001"),
        ({"steps": True}, r"steps: got True"),
        ({"steps": 10.0}, r"steps: got 10.0"),
        ({"solver": "ddimm"}, r"solver: got 'ddimm', expected one of ddpm, ddim, .*unipc"),
        ({"spacing": "even"}, r"spacing: got 'even', expected one of leading"),
        ({"prediction": "noise"}, r"prediction: got 'noise', expected one of eps, v, x0, flow"),
        ({"prediction": None}, r"prediction: got None"),
        ({"steps": None, "timesteps": [1, 2]}, r"timesteps\[1\] = 2 is not below \[0\] = 1"),
        ({"steps": 3, "timesteps": [2, 1]}, r"steps: got 3 beside 2 timesteps"),
        ({"eta": 1.5}, r"eta: got 1.5, expected a number in \[0, 1\]"),
        ({"eta": -0.1}, r"eta: got -0.1"),
        ({"eta": float("nan")}, r"eta: got nan"),
        ({"order": 2}, r"order: not an option of solver 'ddim'; expected eta"),
        ({"solver": "euler", "eta": 0.5}, r"eta: not an option of solver 'euler'; it has none"),
        ({"solver": "ddpm", "variance": "medium"}, r"variance: got 'medium', expected one of small, large, learned"),
        ({"solver": "dpmpp_2m", "kind": "rk"}, r"kind: got 'rk', expected midpoint or heun"),
        ({"solver": "unipc", "variant": "bh3"}, r"variant: got 'bh3', expected bh1 or bh2"),
        ({"solver": "unipc", "order": 4}, r"order: got 4, expected a whole number from 1 to 3"),
        ({"solver": "deis", "order": 0}, r"order: got 0, expected a whole number from 1 to 3"),
        ({"solver": "ipndm", "order": 5}, r"order: got 5, expected a whole number from 1 to 4"),
        ({"solver": "ipndm", "order": True}, r"order: got True"),
        ({"clip": (1.0, -1.0)}, r"clip: the lower bound must be below the upper one"),
        ({"clip": (float("nan"), 1.0)}, r"clip"),
        ({"clip": (-1.0, 0.0, 1.0)}, r"clip"),
    ],
)
def test_bad_input_is_refused_with_its_value_and_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**{"solver": "ddim", "schedule": LINEAR, "steps": 5, **arguments})


def test_explicit_timesteps_are_taken_as_they_are():
    plan = make_plan("ddim", LINEAR, timesteps=[900, 12.5, 3])
    np.testing.assert_array_equal(plan.t, [900, 12.5, 3])
    assert make_plan("ddim", LINEAR, steps=3, timesteps=[900, 12.5, 3]) == plan


def test_no_steps_means_all_of_them():
    assert len(make_plan("ddpm", SMALL)) == SMALL.T


def middle_point(schedule, timesteps, *, pull=0.5):
    plan = PlanBuilder("middle", ["x"])
    for t in timesteps:
        plan.row(t, x={"x": 1 - pull, "d": pull})
    return plan.build()


def test_a_solver_can_be_any_function():
    plan = make_plan(middle_point, LINEAR, steps=2, prediction="x0", clip=(-1.0, 1.0), pull=0.25)
    assert plan.solver == "middle"
    samples = plan.run(lambda x, t: np.full_like(x, 5.0), np.zeros((1, 1)))
    assert samples.item() == 0.25 * 1 + 0.75 * 0.25
    with pytest.raises(ValueError, match=r"push: not an option of solver .*expected pull"):
        make_plan(middle_point, LINEAR, steps=2, push=1)


def test_options_of_a_function_need_not_be_keyword_only():
    def positional(schedule, timesteps, pull=0.5):
        return middle_point(schedule, timesteps, pull=pull)

    def anything(schedule, timesteps, **options):
        return middle_point(schedule, timesteps, **options)

    expected = make_plan(middle_point, LINEAR, steps=2, pull=0.25)
    assert make_plan(positional, LINEAR, steps=2, pull=0.25) == expected
    assert make_plan(anything, LINEAR, steps=2, pull=0.25) == expected


def test_a_row_may_not_name_an_unknown_image():
    builder = PlanBuilder("mine", ["x"])
    with pytest.raises(ValueError, match=r"row: got 'e1', expected one of x, d, m, z"):
        builder.row(3, x={"x": 1, "e1": 2})
    with pytest.raises(ValueError, match=r"row: got 'y', expected one of x"):
        builder.row(3, y={"x": 1})


def test_a_prediction_can_be_any_function_of_alpha_and_sigma():
    plan = make_plan("ddim", LINEAR, steps=4, prediction=lambda alpha, sigma: (1 / alpha, -sigma / alpha))
    assert plan == make_plan("ddim", LINEAR, steps=4, prediction="eps")
