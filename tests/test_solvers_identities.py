"""What must hold between the solvers, and of each alone, by mathematics."""

import numpy as np
import pytest
from gaussian_mixture import levels, network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from ddpm_deploy.grid import Grid
from ddpm_deploy.multistep import exponential_moments, unip_weights
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, consistency_prediction, make_plan
from ddpm_deploy.spacing import SPACINGS

LINEAR = NoiseSchedule.linear()
SCHEDULES = {"linear": LINEAR, "cosine": NoiseSchedule.cosine(), "flow": NoiseSchedule.flow_matching(shift=3.0)}
ZERO_TERMINAL = NoiseSchedule.from_alphas_cumprod(np.append(LINEAR.alphas_cumprod[:-1], 0.0))
ALL_SCHEDULES = {**SCHEDULES, "zero-terminal": ZERO_TERMINAL}

VARIANTS = {
    "ddpm-small": ("ddpm", {}),
    "ddpm-large": ("ddpm", {"variance": "large"}),
    "ddim-0": ("ddim", {}),
    "ddim-0.5": ("ddim", {"eta": 0.5}),
    "ddim-1": ("ddim", {"eta": 1.0}),
    "euler": ("euler", {}),
    "euler_a": ("euler_a", {}),
    "heun": ("heun", {}),
    "dpmpp_1": ("dpmpp_1", {}),
    "dpmpp_1-sde": ("dpmpp_1", {"sde": True}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_2m-heun": ("dpmpp_2m", {"kind": "heun"}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_3m": ("dpmpp_3m", {}),
    "dpmpp_3m-exact": ("dpmpp_3m", {"exact": True}),
    **{f"ipndm-{k}": ("ipndm", {"order": k}) for k in (1, 2, 3, 4)},
    **{f"ipndm-{k}-variable": ("ipndm", {"order": k, "variable": True}) for k in (2, 3, 4)},
    **{f"deis-{k}": ("deis", {"order": k}) for k in (1, 2, 3)},
    **{f"unipc-{k}-{b}": ("unipc", {"order": k, "variant": b}) for k in (1, 2, 3) for b in ("bh1", "bh2")},
    "consistency": ("consistency", {}),
}
STOCHASTIC = {"ddpm-small", "ddpm-large", "ddim-0.5", "ddim-1", "euler_a", "dpmpp_1-sde", "dpmpp_2m_sde", "consistency"}
WITHOUT_MEMORY_OF_X = {"heun", "unipc"}


def plan_of(variant, schedule, **how):
    solver, options = VARIANTS[variant]
    return make_plan(solver, schedule, prediction="x0", **how, **options)


def scales(schedule, plan):
    """(alpha, sigma) of the network's input at every row, and of the sample."""
    alpha, sigma = schedule.at(plan.t)
    return np.append(alpha, 1.0), np.append(sigma, 0.0)


def test_every_solver_is_covered_here():
    assert {solver for solver, _ in VARIANTS.values()} == set(SOLVERS) - {"lcm"}


# -- one solver alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_constant_image_is_kept_at_every_step(variant, schedule):
    """With no noise and a network that always answers c, the state is alpha c."""
    for spacing in SPACINGS:
        plan = plan_of(variant, schedule, steps=13, spacing=spacing)
        alpha, _ = scales(schedule, plan)
        c = np.array([[0.7, -1.3, 2.0]])
        frames = list(plan.frames(lambda x, t: c, alpha[0] * c, np.zeros(1)))  # noqa: B023
        for frame, scale in zip(frames, alpha[1:], strict=True):
            np.testing.assert_allclose(frame.x, scale * c, atol=1e-12)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v][0] not in WITHOUT_MEMORY_OF_X])
def test_a_constant_image_is_kept_row_by_row_by_solvers_without_an_anchor(variant):
    """M[0] applied to (alpha for x, 1 for clean images, 0 for noises and z) is the next alpha."""
    plan = plan_of(variant, LINEAR, steps=9)
    alpha, _ = scales(LINEAR, plan)
    for i, matrix in enumerate(plan.update):
        kept = [{"x": alpha[i], "d": 1.0}.get(name[0], 0.0) for name in (*plan.state, "d", "m", "z")]
        assert matrix[0] @ kept == pytest.approx(alpha[i + 1], abs=1e-13)


def test_lcm_keeps_a_constant_image_up_to_its_boundary_scaling_only():
    """c_skip alpha + c_out is not 1: at t = 0 the boundary condition makes the output the input itself."""
    plan = make_plan("lcm", LINEAR, timesteps=[999, 500, 0], prediction="x0")
    c = np.array([[0.7, -1.3]])
    frames = list(plan.frames(lambda x, t: c, LINEAR.alpha[999] * c, np.zeros(1)))
    np.testing.assert_allclose(frames[0].x, LINEAR.alpha[500] * c, rtol=1e-7)
    np.testing.assert_array_equal(frames[2].x, frames[1].x)
    assert frames[2].x[0, 0] == pytest.approx(LINEAR.alpha[0] * 0.7, rel=1e-7)


@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - STOCHASTIC))
def test_a_fixed_image_and_noise_are_followed_exactly(variant, schedule):
    """alpha c + sigma e solves the ODE when the network answers c, so no deterministic solver may leave it."""
    rng = np.random.default_rng(5)
    t = np.sort(rng.choice(schedule.T, 11, replace=False))[::-1].astype(float)
    t[0] = schedule.T - 1
    plan = plan_of(variant, schedule, timesteps=t)
    alpha, sigma = scales(schedule, plan)
    c, e = rng.standard_normal((2, 1, 4))
    frames = list(plan.frames(lambda x, t: c, alpha[0] * c + sigma[0] * e))
    for frame, a, s in zip(frames, alpha[1:], sigma[1:], strict=True):
        np.testing.assert_allclose(frame.x, a * c + s * e, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("variant", sorted(STOCHASTIC - {"ddpm-large"}))
def test_stochastic_solvers_keep_the_variance_of_the_forward_process(variant, schedule):
    """The old noise and the fresh noise are independent: their variances add up to the next sigma squared."""
    plan = plan_of(variant, schedule, steps=20, spacing="linspace")
    _, sigma = scales(schedule, plan)
    from_x, from_z = plan.update[:, 0, 0], plan.update[:, 0, -1]
    np.testing.assert_allclose((from_x * sigma[:-1]) ** 2 + from_z**2, sigma[1:] ** 2, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_is_the_predicted_clean_image(variant):
    plan = plan_of(variant, LINEAR, steps=1)
    answer = np.array([[0.25, -0.5]])
    np.testing.assert_array_equal(plan.run(lambda x, t: answer, np.ones((1, 2)), np.zeros(1)), answer)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_row_draws_no_noise(variant):
    assert not plan_of(variant, LINEAR, steps=7, spacing="trailing").draws_noise[-1]


# -- one solver against another --------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_small_is_ddim_eta1_is_sde_dpmpp_1_is_euler_a(schedule, spacing):
    reference = plan_of("ddpm-small", schedule, steps=17, spacing=spacing)
    for variant in ("ddim-1", "dpmpp_1-sde", "euler_a"):
        other = plan_of(variant, schedule, steps=17, spacing=spacing)
        np.testing.assert_allclose(other.update, reference.update, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
@pytest.mark.parametrize("variant", ["euler", "dpmpp_1", "deis-1", "ipndm-1"])
def test_every_first_order_ode_solver_is_ddim(variant, schedule):
    reference, other = plan_of("ddim-0", schedule, steps=17), plan_of(variant, schedule, steps=17)
    np.testing.assert_allclose(other.update, reference.update, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_unip_2_bh2_without_corrector_is_dpmpp_2m_midpoint(schedule):
    t = np.linspace(schedule.T - 2, 0, 15).round()
    grid, plan = Grid.of(schedule, t), plan_of("dpmpp_2m", schedule, timesteps=t)
    for i in range(1, len(t) - 1):
        d, d1 = plan.update[i, 0, [2, 1]]
        np.testing.assert_allclose(unip_weights(grid, i, 2, "bh2"), [d, d1], atol=1e-13)


def test_unipc_rows_are_predictor_after_corrector():
    """Row i of UniPC-2 written out: correct x_i with the new image, then step from the corrected state."""
    t = np.array([900.0, 640.0, 333.0, 120.0, 10.0])
    grid, plan = Grid.of(LINEAR, t), plan_of("unipc-2-bh2", LINEAR, timesteps=t)
    rng = np.random.default_rng(0)
    x_T, images = rng.standard_normal((1, 3)), rng.standard_normal((len(t), 1, 3))
    frames = list(plan.frames(lambda x, u: images[int(np.flatnonzero(t == u[0])[0])], x_T))
    lam, alpha, sigma = grid.lam, grid.alpha, grid.sigma

    def correct(i, base):
        h = lam[i] - lam[i - 1]
        b = np.expm1(-h)
        phi1, phi2, phi3 = -b / h, (b + h) / h**2, (h**2 / 2 - h - b) / h**3
        change = images[i] - images[i - 1]
        if i == 1:
            extra = 0.5 * change
        else:
            r = (lam[i - 2] - lam[i - 1]) / h
            weights = np.linalg.solve([[1, 1], [r, 1]], np.array([phi2, 2 * phi3]) / phi1)
            extra = weights[0] * (images[i - 2] - images[i - 1]) / r + weights[1] * change
        return sigma[i] / sigma[i - 1] * base - alpha[i] * b * images[i - 1] - alpha[i] * b * extra

    def predict(i, x):
        h = lam[i + 1] - lam[i]
        b = np.expm1(-h)
        extra = 0.5 * (images[i - 1] - images[i]) / ((lam[i - 1] - lam[i]) / h) if i else 0
        return sigma[i + 1] / sigma[i] * x - alpha[i + 1] * b * (images[i] + extra)

    base = x_T
    for i in range(len(t) - 1):
        base = correct(i, base) if i else base
        np.testing.assert_allclose(frames[i].x, predict(i, base), atol=1e-12)


def test_ddim_eta1_on_all_timesteps_equals_ddpm():
    """Algorithm 2 of Ho et al. 2020, written out."""
    schedule = NoiseSchedule.linear(50, 1e-3, 0.2)
    beta = np.linspace(1e-3, 0.2, 50)
    abar = np.cumprod(1 - beta)
    rng = np.random.default_rng(2)
    x = x_T = rng.standard_normal((3, 5))
    z = rng.standard_normal((50, 3, 5))
    eps = network(levels(abar))
    for row, t in enumerate(range(49, -1, -1)):
        before = abar[t - 1] if t else 1.0
        mean = (x - beta[t] / np.sqrt(1 - abar[t]) * eps(x, t)) / np.sqrt(1 - beta[t])
        x = mean + (np.sqrt(beta[t] * (1 - before) / (1 - abar[t])) * z[row] if t else 0)
    ours = make_plan("ddim", schedule, eta=1.0).run(eps, x_T, z)
    np.testing.assert_allclose(ours, x, atol=1e-11)


def test_ddpm_large_on_all_timesteps_adds_noise_of_variance_beta():
    schedule = NoiseSchedule.linear(50, 1e-3, 0.2)
    plan = make_plan("ddpm", schedule, variance="large")
    np.testing.assert_allclose(plan.update[:-1, 0, -1] ** 2, schedule.betas[:0:-1], rtol=1e-12)
    np.testing.assert_array_equal(plan.update[:, 0, :2], make_plan("ddpm", schedule).update[:, 0, :2])


# -- weights against numerical integration ---------------------------------------------------------


def _prescribed(variant, kind, poly, axis_of):
    """Rows of a solver whose network answers a polynomial of `axis_of(alpha, sigma)`, whatever it sees."""
    t = np.array([960.0, 830.0, 700.0, 590.0, 420.0, 300.0, 150.0, 40.0])
    solver, options = VARIANTS[variant]
    plan = make_plan(solver, LINEAR, timesteps=t, prediction=kind, **options)
    alpha, sigma = LINEAR.at(t)
    answers = np.polyval(poly, axis_of(alpha, sigma))
    frames = list(plan.frames(lambda x, u: np.full_like(x, answers[np.flatnonzero(t == u[0])[0]]), np.array([[0.3]])))
    return alpha, sigma, [0.3, *(frame.x[0, 0] for frame in frames)]


@pytest.mark.parametrize(("variant", "order"), [("dpmpp_2m-heun", 2), ("dpmpp_3m-exact", 3)])
def test_data_multistep_weights_integrate_polynomials_in_lambda(variant, order):
    poly = np.array([0.3, -0.7, 0.4])[-order:]
    alpha, sigma, x = _prescribed(variant, "x0", poly, lambda a, s: np.log(a / s))
    lam = np.log(alpha / sigma)
    for i in range(order - 1, len(lam) - 1):
        integral = quad(lambda u: np.exp(u) * np.polyval(poly, u), lam[i], lam[i + 1], epsabs=1e-13)[0]
        expected = sigma[i + 1] * (x[i] / sigma[i] + integral)
        assert x[i + 1] == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("variant", "order"), [("deis-1", 1), ("deis-2", 2), ("deis-3", 3)])
def test_deis_weights_integrate_polynomials_in_lambda(variant, order):
    poly = np.array([0.3, -0.7, 0.4])[-order:]
    alpha, sigma, x = _prescribed(variant, "eps", poly, lambda a, s: np.log(a / s))
    lam = np.log(alpha / sigma)
    for i in range(order - 1, len(lam) - 1):
        integral = quad(lambda u: -np.exp(-u) * np.polyval(poly, u), lam[i], lam[i + 1], epsabs=1e-13)[0]
        expected = alpha[i + 1] * (x[i] / alpha[i] + integral)
        assert x[i + 1] == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_variable_ipndm_weights_integrate_polynomials_in_sigma_over_alpha(order):
    poly = np.array([0.002, -0.03, 0.5, 0.4])[-order:]
    alpha, sigma, x = _prescribed(f"ipndm-{order}-variable", "eps", poly, lambda a, s: s / a)
    rho, integral = sigma / alpha, np.polyint(poly)
    for i in range(order - 1, len(rho) - 1):
        area = np.polyval(integral, rho[i + 1]) - np.polyval(integral, rho[i])
        assert x[i + 1] == pytest.approx(alpha[i + 1] * (x[i] / alpha[i] + area), rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_published_ipndm_is_adams_bashforth_with_a_lower_order_start(order):
    weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    t = np.array([960.0, 830.0, 700.0, 590.0, 420.0, 300.0, 150.0, 40.0])
    eps = network(levels(LINEAR.alphas_cumprod))
    alpha, sigma = np.append(LINEAR.at(t)[0], 1.0), np.append(LINEAR.at(t)[1], 0.0)
    rho = sigma / alpha
    x = x_T = np.linspace(-1, 1, 5)[None]
    past = []
    for i, u in enumerate(t):
        past.insert(0, eps(x, u))
        known = weights[0] if i + 1 == len(t) else weights[min(order, len(past)) - 1]
        slope = sum(w * e for w, e in zip(known, past, strict=False))
        x = alpha[i + 1] * (x / alpha[i] + (rho[i + 1] - rho[i]) * slope)
    np.testing.assert_allclose(make_plan("ipndm", LINEAR, timesteps=t, order=order).run(eps, x_T), x, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(z=st.floats(-12, 12).filter(lambda z: abs(z) > 1e-6), count=st.integers(1, 4))
def test_exponential_moments_are_their_integrals(z, count):
    for k, moment in enumerate(exponential_moments(z, count)):
        integral = quad(lambda u: abs(z) * np.exp(z * (1 - u)) * u**k, 0, 1, epsabs=0, epsrel=1e-12)[0]  # noqa: B023
        assert moment == pytest.approx(integral, rel=1e-9)


# -- consistency models ----------------------------------------------------------------------------


def test_consistency_sampling_jumps_to_the_image_and_adds_noise_again():
    """Algorithm 1 of Song et al. 2023, in variance-preserving scale."""
    t = [999, 600, 250]
    rng = np.random.default_rng(0)
    x = x_T = rng.standard_normal((2, 3))
    z = rng.standard_normal((3, 2, 3))
    for i, u in enumerate(t):
        x = np.tanh(x + u / 1000)
        if i < 2:
            x = LINEAR.alpha[t[i + 1]] * x + LINEAR.sigma[t[i + 1]] * z[i]
    plan = make_plan("consistency", LINEAR, timesteps=t, prediction="x0")
    np.testing.assert_allclose(plan.run(lambda x, u: np.tanh(x + u[:, None] / 1000), x_T, z), x, atol=1e-14)


def test_consistency_prediction_is_the_identity_at_its_smallest_noise():
    """c_skip = 1 and c_out = 0 there (Song et al. 2023, eq. 5); elsewhere the closed forms of appendix C."""
    p_x, p_m = consistency_prediction(0.5, 0.002)(np.array([1.0, 0.6]), np.array([0.002, 0.6 * 1.5]))
    assert (p_x[0], p_m[0]) == (1.0, 0.0)
    assert p_x[1] * 0.6 == pytest.approx(0.25 / (1.498**2 + 0.25))
    assert p_m[1] == pytest.approx(0.5 * 1.498 / np.sqrt(0.25 + 1.5**2))


def test_lcm_scalings_are_those_of_the_boundary_condition():
    plan = make_plan("lcm", LINEAR, timesteps=[700, 5], prediction="x0", sigma_data=0.7, timestep_scaling=2.0)
    for i, (t, alpha, sigma) in enumerate([(700, LINEAR.alpha[5], LINEAR.sigma[5]), (5, 1.0, 0.0)]):
        skip, out = 0.49 / ((2 * t) ** 2 + 0.49), 2 * t / np.sqrt((2 * t) ** 2 + 0.49)
        np.testing.assert_allclose(plan.update[i, 0], [alpha * skip, alpha * out, 0, sigma], rtol=1e-13)
