"""The diffusion itself: tables against papers and diffusers, the forward process against simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_deploy.schedule import PREDICTIONS, NoiseSchedule, posterior_coefficients, transition, x0_coefficients

LINEAR = NoiseSchedule.linear()
FLOW = NoiseSchedule.flow_matching(10)
SCHEDULES = {
    "linear": LINEAR,
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "flow": NoiseSchedule.flow_matching(),
}
VARIANCE_PRESERVING = {name: schedule for name, schedule in SCHEDULES.items() if name != "flow"}


# -- tables ----------------------------------------------------------------------------------------


def test_linear_has_the_known_values_of_ho_et_al():
    assert LINEAR.T == len(LINEAR) == 1000
    assert LINEAR.betas[0] == pytest.approx(1e-4)
    assert LINEAR.betas[-1] == pytest.approx(0.02)
    assert LINEAR.alphas_cumprod[0] == pytest.approx(0.9999)
    assert LINEAR.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # the paper's L_T = 1e-5 bits per dimension


def test_linear_betas_are_evenly_spaced():
    np.testing.assert_allclose(LINEAR.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        (NoiseSchedule.linear(), {"beta_schedule": "linear"}),
        (NoiseSchedule.linear(200, 1e-3, 0.05), {"num_train_timesteps": 200, "beta_start": 1e-3, "beta_end": 0.05}),
        (
            NoiseSchedule.scaled_linear(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (NoiseSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (NoiseSchedule.cosine(50), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}),
    ],
    ids=["linear", "linear-200", "scaled_linear", "cosine", "cosine-50"],
)
def test_betas_agree_with_diffusers(schedule, config):
    theirs = pytest.importorskip("diffusers").DDPMScheduler(**config)
    np.testing.assert_allclose(schedule.betas, theirs.betas.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)


def test_cosine_is_a_squared_cosine_where_beta_is_not_capped():
    """Nichol & Dhariwal 2021, eq. 17: alpha-bar(t) = f(t) / f(0)."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = NoiseSchedule.cosine().alphas_cumprod
    np.testing.assert_allclose(abar[:-1], f[1:-1] / f[0], rtol=1e-10)
    assert NoiseSchedule.cosine().betas[-1] == pytest.approx(0.999)


def test_sigmoid_follows_its_formula():
    """Chen 2023, "On the importance of noise scheduling": gamma(t), normalised to 1 at 0 and 0 at 1."""
    logistic = 1 / (1 + np.exp(-(np.linspace(0, 1, 1001) * 6 - 3)))
    gamma = (logistic[-1] - logistic) / (logistic[-1] - logistic[0])
    np.testing.assert_allclose(NoiseSchedule.sigmoid().alphas_cumprod[:-1], gamma[1:-1], rtol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_agrees_with_diffusers(shift):
    theirs = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = NoiseSchedule.flow_matching(1000, shift)
    np.testing.assert_allclose(ours.sigma[::-1], theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.alpha + ours.sigma, 1, atol=1e-15)
    assert ours.alpha[-1] == 0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_signal_to_noise_ratio_falls(schedule):
    assert np.all(np.diff(schedule.lam) < 0)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(schedule.lam, np.log(schedule.alpha / schedule.sigma), atol=1e-12)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING.values(), ids=VARIANCE_PRESERVING)
def test_given_tables_make_the_same_schedule(schedule):
    from_abar = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod)
    np.testing.assert_allclose(from_abar.alpha, schedule.alpha, rtol=1e-14)
    assert NoiseSchedule.from_alpha_sigma(schedule.alpha, schedule.sigma) == schedule
    np.testing.assert_allclose(NoiseSchedule.from_betas(schedule.betas).alpha, schedule.alpha, rtol=1e-8)


def test_tables_are_read_only_copies():
    alpha, sigma = np.array([0.9, 0.5]), np.array([0.1, 0.5])
    schedule = NoiseSchedule.from_alpha_sigma(alpha, sigma)
    alpha[0] = 7
    assert schedule.alpha[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha[0] = 7


def test_schedules_are_equal_by_their_tables():
    assert NoiseSchedule.linear(50) == NoiseSchedule.linear(50)
    assert NoiseSchedule.linear(50) != NoiseSchedule.linear(51)
    assert NoiseSchedule.linear(50) != "linear"


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_tables_of_ddpm_alone_are_refused_elsewhere(name):
    with pytest.raises(ValueError, match=f"{name}: only a variance-preserving schedule has it"):
        getattr(FLOW, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.linear(0), r"T: got 0, expected a whole number"),
        (lambda: NoiseSchedule.linear(10.0), r"T: got 10.0"),
        (lambda: NoiseSchedule.cosine(-3), r"T: got -3"),
        (lambda: NoiseSchedule.linear(True), r"T: got True"),
        (lambda: NoiseSchedule.from_betas([0.1, 0.0]), r"betas\[1\]: got 0.0, expected a number in \(0, 1\]"),
        (lambda: NoiseSchedule.from_betas([0.1, 1.5]), r"betas\[1\]: got 1.5"),
        (lambda: NoiseSchedule.from_betas([float("nan")]), r"betas\[0\]: got nan"),
        (lambda: NoiseSchedule.from_betas([[0.1, 1.5]]), r"betas: got shape \(1, 2\)"),
        (lambda: NoiseSchedule.from_betas(0.1), r"betas: got shape \(\)"),
        (
            lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.95]),
            r"alphas_cumprod\[1\] = 0.95 is not below \[0\] = 0.9",
        ),
        (
            lambda: NoiseSchedule.from_alphas_cumprod([1.0]),
            r"alphas_cumprod\[0\]: got 1.0, expected a number in \[0, 1\)",
        ),
        (lambda: NoiseSchedule.from_alphas_cumprod([0.5, -0.1]), r"alphas_cumprod\[1\]: got -0.1"),
        (lambda: NoiseSchedule.from_alphas_cumprod([[0.9], [1.5]]), r"alphas_cumprod: got shape \(2, 1\)"),
        (lambda: NoiseSchedule.from_alpha_sigma([0.9, 0.5], [0.1]), r"alpha, sigma: got shapes \(2,\), \(1,\)"),
        (lambda: NoiseSchedule.from_alpha_sigma([], []), r"T at least 1"),
        (lambda: NoiseSchedule.from_alpha_sigma([-0.1], [1]), r"alpha\[0\]: got -0.1, expected a finite number >= 0"),
        (lambda: NoiseSchedule.from_alpha_sigma([0.9], [0]), r"sigma\[0\]: got 0.0, expected a finite number > 0"),
        (lambda: NoiseSchedule.from_alpha_sigma([np.inf], [1]), r"alpha\[0\]: got inf"),
        (lambda: NoiseSchedule.from_alpha_sigma([0.5, 0.9], [0.5, 0.5]), r"alpha/sigma\[1\] is not below \[0\]"),
    ],
)
def test_bad_tables_are_refused_by_their_entry(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- between the integers --------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_integers_give_the_tables(schedule):
    alpha, sigma = schedule.at(np.arange(1000))
    np.testing.assert_allclose(alpha, schedule.alpha, atol=1e-15)
    np.testing.assert_allclose(sigma, schedule.sigma, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_lambda_is_linear_and_the_scale_is_kept_between_integers(schedule):
    t = np.array([0.25, 17.5, 333.9, 997.4])
    alpha, sigma = schedule.at(t)
    np.testing.assert_allclose(np.log(alpha / sigma), np.interp(t, np.arange(999), schedule.lam[:999]), atol=1e-10)
    scale = alpha + sigma if schedule is SCHEDULES["flow"] else alpha**2 + sigma**2
    np.testing.assert_allclose(scale, 1, atol=1e-12)


def test_any_other_path_keeps_the_sum_of_alpha_and_sigma_linear():
    """Such as a variance-exploding one."""
    schedule = NoiseSchedule.from_alpha_sigma([1.0, 1.0, 1.0], [0.1, 1.0, 10.0])
    alpha, sigma = schedule.at([0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(alpha[[0, 2, 3]], 1)
    np.testing.assert_allclose(sigma[[0, 2, 3]], [0.1, 1, 10])
    assert alpha[1] + sigma[1] == pytest.approx(1.55)
    assert sigma[1] / alpha[1] == pytest.approx(np.sqrt(0.1))


def test_alpha_and_sigma_are_linear_beside_a_step_of_pure_noise():
    alpha, sigma = FLOW.at([8.25, 9.0])
    np.testing.assert_allclose(alpha, [0.075, 0.0], atol=1e-15)
    np.testing.assert_allclose(sigma, [0.925, 1.0], atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_t_of_lam_inverts_at(schedule):
    t = np.array([0.0, 0.25, 17.5, 333.9, 998.0])
    alpha, sigma = schedule.at(t)
    np.testing.assert_allclose(schedule.t_of_lam(np.log(alpha / sigma)), t, atol=1e-8)


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.flow_matching(1)], ids=["linear", "flow-1"])
def test_t_of_lam_clamps(schedule):
    np.testing.assert_array_equal(schedule.t_of_lam([1e9, -1e9]), [0, schedule.T - 1])


@pytest.mark.parametrize("t", [-0.1, 999.5, float("nan"), [0, 1000]])
def test_times_outside_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match=r"t: got .*expected a number in \[0, 999\]"):
        LINEAR.at(t)


# -- the forward process ---------------------------------------------------------------------------


def test_iterated_chain_and_closed_form_have_the_same_mean_and_variance_at_every_t():
    """By simulation: 20,000 chains from one pixel, each of the T steps drawn on its own."""
    schedule = NoiseSchedule.linear(60, 1e-3, 0.25)
    rng = np.random.default_rng(0)
    count, x0 = 20_000, 1.7
    x = np.full((count, 1), x0)
    for t in range(schedule.T):
        x = schedule.forward_step(x, rng.standard_normal(x.shape), t)
        alpha, sigma = np.sqrt(np.prod(1 - schedule.betas[: t + 1])), np.sqrt(1 - np.prod(1 - schedule.betas[: t + 1]))
        assert abs(x.mean() - alpha * x0) < 4.5 * sigma / np.sqrt(count)
        assert abs(x.var() / sigma**2 - 1) < 4.5 * np.sqrt(2 / count)
        jumped = schedule.add_noise(np.full((count, 1), x0), rng.standard_normal((count, 1)), t)
        assert abs(jumped.mean() - x.mean()) < 4.5 * sigma * np.sqrt(2 / count)
        assert abs(jumped.var() / x.var() - 1) < 4.5 * np.sqrt(4 / count)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_merged_steps_are_the_closed_form_exactly(schedule):
    """Scales multiply and variances add, for any (alpha, sigma) path."""
    mean, variance = 1.0, 0.0
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    for t in range(schedule.T):
        scale = schedule.forward_step(one, zero, t).item()
        fresh = schedule.forward_step(zero, one, t).item()
        mean, variance = scale * mean, scale**2 * variance + fresh**2
        assert mean == pytest.approx(schedule.alpha[t], rel=1e-8, abs=1e-14)
        assert variance == pytest.approx(schedule.sigma[t] ** 2, rel=1e-8)


def test_a_forward_step_is_the_papers():
    """Ho et al. 2020, eq. 2."""
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, 3, 4))
    t = np.array([0, 10, 999])
    beta = np.linspace(1e-4, 0.02, 1000)[t][:, None]
    np.testing.assert_allclose(LINEAR.forward_step(x, eps, t), np.sqrt(1 - beta) * x + np.sqrt(beta) * eps, rtol=1e-9)


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, NoiseSchedule.cosine(100)], ids=["linear", "flow", "cosine"])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_posterior_is_bayes_rule_on_a_grid(schedule, fraction):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0); all three from the definition."""
    t = max(1, int(fraction * (schedule.T - 1)))
    x0, x_t = 0.6, -0.35
    before = np.linspace(-8, 8, 400_001)
    ratio = schedule.alpha[t] / schedule.alpha[t - 1]
    step = schedule.sigma[t] ** 2 - (ratio * schedule.sigma[t - 1]) ** 2
    log_density = -((x_t - ratio * before) ** 2) / (2 * step)
    log_density -= (before - schedule.alpha[t - 1] * x0) ** 2 / (2 * schedule.sigma[t - 1] ** 2)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    expected = density @ before
    mean, variance = schedule.posterior(np.full((1, 1), x0), np.full((1, 1), x_t), t)
    assert mean.item() == pytest.approx(expected, abs=1e-9)
    assert np.asarray(variance).item() == pytest.approx(density @ (before - expected) ** 2, rel=1e-7)


def test_posterior_is_the_papers():
    """Ho et al. 2020, eq. 7, with one t for each sample."""
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - beta)
    t = np.array([1, 400, 999])
    b, now, before = (table[:, None] for table in (beta[t], abar[t], abar[t - 1]))
    rng = np.random.default_rng(0)
    x0, x_t = rng.standard_normal((2, 3, 4))
    mean, variance = LINEAR.posterior(x0, x_t, t)
    expected = np.sqrt(before) * b / (1 - now) * x0 + np.sqrt(1 - b) * (1 - before) / (1 - now) * x_t
    np.testing.assert_allclose(mean, expected, rtol=1e-8)
    np.testing.assert_allclose(variance, b * (1 - before) / (1 - now), rtol=1e-8)


def test_posterior_of_the_first_step_is_the_clean_image():
    x0, x_t = np.full((1, 2), 0.3), np.full((1, 2), 0.9)
    mean, variance = LINEAR.posterior(x0, x_t, 0)
    np.testing.assert_array_equal(mean, x0)
    assert variance == 0


@pytest.mark.parametrize("t", [1.5, 1000, -1])
@pytest.mark.parametrize("method", ["forward_step", "posterior"])
def test_steps_of_the_chain_need_an_integer_in_range(method, t):
    with pytest.raises(ValueError, match=r"t: got .*expected integers"):
        getattr(LINEAR, method)(np.zeros((1, 1)), np.zeros((1, 1)), t)


def test_a_posterior_step_after_a_transition_returns_to_the_marginal():
    """Going up by `transition` and back down by the posterior leaves mean and variance of x_s, for any two levels."""
    a_s, s_s, a_t, s_t = 0.9, 0.35, 0.4, 0.8
    ratio, variance = transition(a_s, s_s, a_t, s_t)
    from_x, from_x0, back = posterior_coefficients(a_s, s_s, a_t, s_t)
    assert from_x * a_t + from_x0 == pytest.approx(a_s)
    assert from_x**2 * (ratio**2 * s_s**2 + variance) + back == pytest.approx(s_s**2)


# -- conversions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_prediction_means_the_image_it_was_made_from(schedule, kind):
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((2, 4, 3, 2, 2))
    t = np.array([0, 12.5, 500, 998])
    x = schedule.add_noise(x0, eps, t)
    alpha, sigma = (np.reshape(level, (4, 1, 1, 1)) for level in schedule.at(t))
    np.testing.assert_allclose(x, alpha * x0 + sigma * eps, rtol=1e-14)
    prediction = {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0, "flow": eps - x0}[kind]
    np.testing.assert_allclose(schedule.to_x0(x, prediction, t, kind), x0, atol=1e-7)
    np.testing.assert_allclose(schedule.from_x0(x, x0, t, kind), prediction, atol=1e-7)
    np.testing.assert_allclose(schedule.velocity(x0, eps, t), alpha * eps - sigma * x0, rtol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    source=st.sampled_from(PREDICTIONS),
    to=st.sampled_from(PREDICTIONS),
    t=st.floats(0, 900),
    seed=st.integers(0, 1000),
)
def test_converting_there_and_back_changes_nothing(name, source, to, t, seed):
    x, prediction = np.random.default_rng(seed).standard_normal((2, 2, 5))
    there = SCHEDULES[name].convert(x, prediction, t, source, to)
    np.testing.assert_allclose(SCHEDULES[name].convert(x, there, t, to, source), prediction, atol=1e-8)


def test_the_formulas_of_the_contract_hold_on_a_variance_preserving_schedule():
    alpha, sigma = 0.6, 0.8
    assert x0_coefficients(alpha, sigma, "eps") == pytest.approx((1 / alpha, -sigma / alpha))
    assert x0_coefficients(alpha, sigma, "v") == pytest.approx((alpha, -sigma))
    assert x0_coefficients(alpha, sigma, "x0") == (0, 1)
    assert x0_coefficients(0.3, 0.7, "flow") == pytest.approx((1, -0.7))


def test_pure_noise_tells_nothing_about_the_image_through_eps():
    with pytest.raises(ValueError, match="prediction: got 'eps' at a timestep with alpha = 0"):
        x0_coefficients(0.0, 1.0, "eps")
    for kind in ("v", "x0", "flow"):
        assert np.isfinite(x0_coefficients(0.0, 1.0, kind)).all()


def test_an_unknown_prediction_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="prediction: got 'noise', expected one of eps, v, x0, flow"):
        LINEAR.to_x0(np.zeros((1, 1)), np.zeros((1, 1)), 0, "noise")


@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 9), (3, 1, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_rank_and_dtype_is_kept_and_samples_have_their_own_t(shape, dtype):
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, *shape)).astype(dtype)
    t = np.array([0, 500, 999])
    noised = LINEAR.add_noise(x0, eps, t)
    assert noised.dtype == dtype
    for i in range(3):
        np.testing.assert_array_equal(noised[i : i + 1], LINEAR.add_noise(x0[i : i + 1], eps[i : i + 1], t[i]))
    mean, _ = LINEAR.posterior(x0, eps, t)
    assert mean.dtype == dtype
    assert mean.shape == shape
