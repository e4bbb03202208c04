"""Running a plan: its inputs, its noise, its frames, learned variance, and how it prints."""

import copy

import numpy as np
import pytest
from gaussian_mixture import levels, network

from ddpm_deploy.errors import NonFiniteError
from ddpm_deploy.plan import PlanBuilder
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, make_plan

LINEAR = NoiseSchedule.linear()
SMALL = NoiseSchedule.linear(12, 0.01, 0.5)
EPS = network(levels(LINEAR.alphas_cumprod))
PLAIN = sorted(SOLVERS)


# -- running ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", PLAIN)
def test_run_leaves_its_inputs_untouched_and_repeats_itself(solver):
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((2, 3, 4)), rng.standard_normal((19, 2, 3, 4))
    outputs = []

    def denoise(x, t):
        outputs.append((m := EPS(x, t), m.copy()))
        return m

    plan = make_plan(solver, LINEAR, steps=10, clip=(-0.5, 0.5))
    before = x_T.copy(), z.copy()
    first = plan.run(denoise, x_T, z[: len(plan)])
    kept = first.copy()
    np.testing.assert_array_equal(plan.run(denoise, x_T, z[: len(plan)]), kept)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x_T, before[0])
    np.testing.assert_array_equal(z, before[1])
    for m, copied in outputs:
        np.testing.assert_array_equal(m, copied)


@pytest.mark.parametrize("solver", PLAIN)
def test_earlier_frames_are_not_overwritten_by_later_ones(solver):
    plan = make_plan(solver, LINEAR, steps=6)
    x_T = np.random.default_rng(0).standard_normal((2, 3))
    frames, copies = [], []
    for frame in plan.frames(EPS, x_T, np.zeros(1)):
        frames.append(frame)
        copies.append(copy.deepcopy(frame))
    for frame, copied in zip(frames, copies, strict=True):
        np.testing.assert_array_equal(frame.x, copied.x)
        np.testing.assert_array_equal(frame.x0, copied.x0)


def test_adding_to_the_state_does_not_write_into_what_was_remembered():
    builder = PlanBuilder("sums", ["x", "old"])
    for t in (2, 1, 0):
        builder.row(t, x={"x": 1, "d": 1, "old": 1}, old={"x": 1})
    plan = builder.build()
    x_T = np.ones((1, 1))
    frames = list(plan.frames(lambda x, t: np.full_like(x, 10.0), x_T))
    assert [frame.x.item() for frame in frames] == [12.0, 23.0, 45.0]
    assert x_T.item() == 1


def test_a_network_that_scribbles_on_its_input_cannot_reach_the_callers_x_T():
    def denoise(x, t):
        x[...] = np.nan
        return np.zeros_like(x)

    x_T = np.ones((1, 2))
    make_plan("consistency", LINEAR, steps=1, prediction="x0").run(denoise, x_T)
    np.testing.assert_array_equal(x_T, 1)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (None, [-3.0, 0.25, 3.0]),
        ((-1.0, 1.0), [-1.0, 0.25, 1.0]),
        ((-np.inf, 1.0), [-3.0, 0.25, 1.0]),
        ((0.5, np.inf), [0.5, 0.5, 3.0]),
    ],
)
def test_a_clip_bounds_the_clean_image_on_either_side(clip, expected):
    plan = make_plan("ddim", LINEAR, steps=1, prediction="x0", clip=clip)
    answer = np.array([[-3.0, 0.25, 3.0]])
    (frame,) = plan.frames(lambda x, t: answer, np.zeros((1, 3)))
    np.testing.assert_array_equal(frame.x0, [expected])
    np.testing.assert_array_equal(frame.x, [expected])
    np.testing.assert_array_equal(answer, [[-3.0, 0.25, 3.0]])


def test_frames_tell_the_row_its_time_the_state_and_the_clean_image():
    plan = make_plan("ddim", LINEAR, steps=3)
    x_T = np.random.default_rng(0).standard_normal((2, 3))
    seen = []

    def denoise(x, t):
        seen.append((x.copy(), t))
        return EPS(x, t)

    frames = list(plan.frames(denoise, x_T))
    assert [frame.step for frame in frames] == [0, 1, 2]
    assert [frame.t for frame in frames] == plan.t.tolist()
    np.testing.assert_array_equal(seen[0][0], x_T)
    for i, (x, t) in enumerate(seen):
        np.testing.assert_array_equal(t, np.full(2, plan.t[i]))
        alpha, sigma = LINEAR.at(plan.t[i])
        np.testing.assert_allclose(frames[i].x0, (x - sigma * EPS(x, t)) / alpha, rtol=1e-10)
        if i:
            np.testing.assert_array_equal(x, frames[i - 1].x)
    np.testing.assert_array_equal(plan.run(EPS, x_T), frames[-1].x)


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "heun"])
@pytest.mark.parametrize("shape", [(5,), (2, 6), (3, 4, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_samples_of_any_rank_in_any_batch_are_the_same(solver, shape, batch):
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((batch, *shape)), rng.standard_normal((7, batch, *shape))
    plan = make_plan(solver, LINEAR, steps=4)
    samples = plan.run(EPS, x_T, z[: len(plan)])
    assert samples.shape == (batch, *shape)
    flat = plan.run(EPS, x_T.reshape(batch, -1), z[: len(plan)].reshape(len(plan), batch, -1))
    np.testing.assert_allclose(samples.reshape(batch, -1), flat, rtol=1e-13)
    for i in range(batch):
        alone = plan.run(EPS, x_T[i : i + 1], z[: len(plan), i : i + 1])
        np.testing.assert_allclose(samples[i : i + 1], alone, rtol=1e-13)


@pytest.mark.parametrize("solver", PLAIN)
def test_samples_have_the_dtype_of_x_T_and_float32_follows_float64(solver):
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((2, 3)), rng.standard_normal((9, 2, 3))
    plan = make_plan(solver, LINEAR, steps=5, prediction="v")
    denoise = network(levels(LINEAR.alphas_cumprod), "v")  # answers in float64 whatever it is asked in
    double = plan.run(denoise, x_T, z[: len(plan)])
    single = plan.run(denoise, x_T.astype(np.float32), z[: len(plan)])
    called = plan.run(denoise, x_T.astype(np.float32), lambda row: z[row])
    assert double.dtype == np.float64
    assert single.dtype == called.dtype == np.float32
    np.testing.assert_array_equal(single, called)
    np.testing.assert_allclose(single, double, atol=3e-5)


def test_the_network_sees_the_dtype_of_x_T():
    seen = set()

    def denoise(x, t):
        seen.add((x.dtype, t.dtype, t.shape))
        return x

    make_plan("unipc", LINEAR, steps=5).run(denoise, np.zeros((3, 2), dtype=np.float32))
    assert seen == {(np.dtype(np.float32), np.dtype(np.float32), (3,))}


@pytest.mark.parametrize("solver", ["ddpm", "euler_a", "dpmpp_2m_sde", "lcm", "consistency"])
def test_callable_noise_equals_array_noise_equals_broadcast_noise(solver):
    rng = np.random.default_rng(0)
    plan = make_plan(solver, LINEAR, steps=6)
    x_T, z = rng.standard_normal((2, 3)), rng.standard_normal((6, 1, 3))
    full = np.broadcast_to(z, (6, 2, 3))
    asked = []

    def draw(row):
        asked.append(row)
        return full[row]

    expected = plan.run(EPS, x_T, full)
    np.testing.assert_array_equal(plan.run(EPS, x_T, draw), expected)
    np.testing.assert_array_equal(plan.run(EPS, x_T, z), expected)
    assert asked == [0, 1, 2, 3, 4]  # the last row draws none


@pytest.mark.parametrize("solver", ["ddpm", "euler_a", "dpmpp_2m_sde", "lcm", "consistency"])
def test_a_stochastic_plan_refuses_no_noise_before_it_runs(solver):
    plan = make_plan(solver, LINEAR, steps=3)
    assert not plan.is_deterministic
    assert plan.draws_noise == (True, True, False)
    with pytest.raises(ValueError, match=f"noise: got None, but the plan of '{solver}' draws noise"):
        plan.frames(lambda x, t: pytest.fail("the network was called"), np.zeros((1, 2)))


@pytest.mark.parametrize(
    "solver", ["ddim", "euler", "heun", "dpmpp_1", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis", "unipc"]
)
def test_a_deterministic_plan_needs_no_noise_and_asks_for_none(solver):
    plan = make_plan(solver, LINEAR, steps=5)
    assert plan.is_deterministic
    x_T = np.ones((1, 2))
    samples = plan.run(EPS, x_T, lambda row: pytest.fail("noise was drawn"))
    np.testing.assert_array_equal(samples, plan.run(EPS, x_T))


def test_one_step_of_a_stochastic_solver_is_deterministic():
    assert make_plan("ddpm", LINEAR, steps=1).is_deterministic


@pytest.mark.parametrize("noise", [np.zeros((7, 2, 3)), np.zeros((6, 2, 4)), lambda row: np.zeros((3, 2, 3))])
def test_noise_of_another_shape_is_refused(noise):
    with pytest.raises(ValueError, match=r"noise: got .*shape"):
        make_plan("ddpm", LINEAR, steps=6).run(EPS, np.zeros((2, 3)), noise)


@pytest.mark.parametrize("x_T", [np.zeros(3), np.zeros((1, 2), dtype=np.int64), np.zeros((1, 2), np.float16), 0.0])
def test_an_x_T_without_batch_or_of_another_dtype_is_refused(x_T):
    with pytest.raises(ValueError, match=r"x_T: got shape .*expected \(B, \*S\) of float32 or float64"):
        make_plan("ddim", LINEAR, steps=2).run(EPS, x_T)


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"denoise: got an output of shape \(2, 1\), expected \(2, 3\)"):
        make_plan("ddim", LINEAR, steps=2).run(lambda x, t: x[:, :1], np.zeros((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_a_non_finite_output_names_its_samples_even_where_a_clip_would_hide_it(clip, bad):
    def denoise(x, t):
        m = np.zeros_like(x)
        if t[0] < 500:
            m[[1, 3], 0, 1] = bad
        return m

    plan = make_plan("ddim", LINEAR, steps=4, clip=clip)
    with pytest.raises(NonFiniteError, match=r"row 2 \(t = 499\): .*not finite for samples \[1, 3\]"):
        plan.run(denoise, np.zeros((5, 2, 2)))


# -- learned variance ------------------------------------------------------------------------------


def test_learned_variance_interpolates_the_log_variance():
    """Nichol & Dhariwal 2021, eq. 15: Sigma = exp(v log beta + (1 - v) log beta~), v in [0, 1] from (output + 1)/2."""
    beta = np.linspace(0.01, 0.5, 12)
    abar = np.cumprod(1 - beta)
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((3, 2, 5)), rng.standard_normal((12, 3, 2, 5))
    answers = rng.uniform(-1, 1, (12, 3, 4, 5))
    x = x_T
    for row, t in enumerate(range(11, -1, -1)):
        eps, v = answers[row][:, :2], (answers[row][:, 2:] + 1) / 2
        mean = (x - beta[t] / np.sqrt(1 - abar[t]) * eps) / np.sqrt(1 - beta[t])
        x = mean
        if t > 0:
            small = beta[t] * (1 - abar[t - 1]) / (1 - abar[t])
            x = mean + np.sqrt(np.exp(v * np.log(beta[t]) + (1 - v) * np.log(small))) * z[row]
    plan = make_plan("ddpm", SMALL, variance="learned")
    ours = plan.run(lambda _, t: answers[11 - int(t[0])], x_T, z)
    np.testing.assert_allclose(ours, x, atol=1e-10)


@pytest.mark.parametrize(("v", "fixed"), [(-1.0, "small"), (1.0, "large")])
def test_learned_variance_has_the_two_fixed_ones_at_its_ends(v, fixed):
    rng = np.random.default_rng(0)
    x_T, z = rng.standard_normal((2, 3)), rng.standard_normal((6, 2, 3))
    learned = make_plan("ddpm", LINEAR, steps=6, variance="learned")
    ours = learned.run(lambda x, t: np.concatenate([EPS(x, t), np.full_like(x, v)], axis=1), x_T, z)
    expected = make_plan("ddpm", LINEAR, steps=6, variance=fixed).run(EPS, x_T, z)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_a_learned_variance_plan_wants_twice_the_channels():
    plan = make_plan("ddpm", LINEAR, steps=2, variance="learned")
    with pytest.raises(ValueError, match=r"denoise: got an output of shape \(1, 3, 4\), expected \(1, 6, 4\)"):
        plan.run(lambda x, t: x, np.zeros((1, 3, 4)), np.zeros(1))


# -- for people ------------------------------------------------------------------------------------


def test_a_plan_prints_as_a_readable_table():
    plan = make_plan("ddpm", NoiseSchedule.from_alphas_cumprod([0.81, 0.36]), prediction="v", clip=(-1.0, 1.0))
    assert str(plan) == "\n".join(
        [
            "ddpm: 2 network evaluations, state x, noise in 1 rows",
            "row  t  clean image                       next state",
            "  0  1  d = 0.6 x - 0.8 m in [-1, 1]      x = 0.19792 x + 0.78125 d + 0.40612 z",
            "  1  0  d = 0.9 x - 0.43589 m in [-1, 1]  x = d",
        ]
    )


def test_a_printed_plan_shows_its_memory_and_fractional_times():
    text = str(make_plan("dpmpp_2m", LINEAR, timesteps=[900, 12.5, 3], prediction="x0"))
    assert text.splitlines()[0] == "dpmpp_2m: 3 network evaluations, state x d1, deterministic"
    assert "d = m" in text
    assert "12.5" in text
    assert "d1 = d" in text
    assert "learned variance" in str(make_plan("ddpm", LINEAR, steps=2, variance="learned"))


def test_a_long_plan_is_cut_in_the_middle_of_its_table():
    lines = str(make_plan("ddpm", LINEAR)).splitlines()
    assert len(lines) == 2 + 40 + 1
    assert lines[22] == "... 960 more rows ..."
    assert lines[21].split()[:2] == ["19", "980"]
    assert lines[23].split()[:2] == ["980", "19"]
    assert lines[-1].split()[:2] == ["999", "0"]


def test_tables_are_read_only():
    plan = make_plan("ddim", LINEAR, steps=2)
    for table in (plan.t, plan.predict, plan.clip, plan.update):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0
