"""Measured orders of convergence against the exact probability-flow ODE.

The grid is uniform in lambda from lambda(T-1) to lambda(0); the last jump, to sigma = 0, is the same on both sides.
"""

from functools import cache

import numpy as np
import pytest
from gaussian_mixture import DEVIATIONS, MEANS, WEIGHTS, exact_sample, levels, network

from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

SCHEDULE = NoiseSchedule.linear(1000)
START = np.linspace(-2.2, 2.2, 9)
COUNTS = (40, 80, 160, 320)


@cache
def exact():
    return exact_sample(START, SCHEDULE.lam[-1], SCHEDULE.lam[0])


def uniform_in_lambda(steps):
    """steps + 1 timesteps: as many steps, and the jump."""
    t = SCHEDULE.t_of_lam(np.linspace(SCHEDULE.lam[-1], SCHEDULE.lam[0], steps + 1))
    t[0], t[-1] = SCHEDULE.T - 1, 0
    return t


def error(solver, steps, **options):
    plan = make_plan(solver, SCHEDULE, timesteps=uniform_in_lambda(steps), **options)
    samples = plan.run(network(levels(SCHEDULE.alphas_cumprod)), START[:, None])
    return np.sqrt(np.mean((samples[:, 0] - exact()) ** 2))


def order(solver, **options):
    errors = [error(solver, steps, **options) for steps in COUNTS]
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "options", "low", "high"),
    [
        ("ddim", {}, 0.9, 1.1),
        ("euler", {}, 0.9, 1.1),
        ("dpmpp_1", {}, 0.9, 1.1),
        ("heun", {}, 1.85, 2.15),
        ("dpmpp_2m", {"kind": "midpoint"}, 1.85, 2.15),
        ("dpmpp_2m", {"kind": "heun"}, 1.85, 2.15),
        ("dpmpp_3m", {"exact": False}, 1.85, 2.15),
        ("dpmpp_3m", {"exact": True}, 2.7, 3.3),
        ("ipndm", {"order": 4}, 1.85, 2.15),
        ("ipndm", {"order": 2, "variable": True}, 1.8, 2.2),
        ("ipndm", {"order": 3, "variable": True}, 2.7, 3.3),
        ("ipndm", {"order": 4, "variable": True}, 3.0, 4.3),
        ("deis", {"order": 1}, 0.9, 1.1),
        ("deis", {"order": 2}, 1.85, 2.15),
        ("deis", {"order": 3}, 2.7, 3.7),
        # the corrector adds one order
        ("unipc", {"order": 1, "variant": "bh1"}, 1.85, 2.15),
        ("unipc", {"order": 1, "variant": "bh2"}, 1.85, 2.15),
        ("unipc", {"order": 2, "variant": "bh1"}, 2.7, 3.3),
        ("unipc", {"order": 2, "variant": "bh2"}, 2.7, 3.3),
        ("unipc", {"order": 3, "variant": "bh1"}, 2.7, 4.3),
        ("unipc", {"order": 3, "variant": "bh2"}, 2.7, 4.3),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_order_of_convergence(solver, options, low, high):
    assert low <= order(solver, **options) <= high


def test_the_exact_third_order_weights_beat_the_published_ones():
    assert error("dpmpp_3m", 160, exact=True) < error("dpmpp_3m", 160) / 5


def test_exact_solution_of_one_gaussian_is_known_in_closed_form(monkeypatch):
    monkeypatch.setattr("gaussian_mixture.WEIGHTS", np.array([1.0]))
    monkeypatch.setattr("gaussian_mixture.MEANS", np.array([0.4]))
    monkeypatch.setattr("gaussian_mixture.DEVIATIONS", np.array([0.3]))
    (a0, a1), (s0, s1) = SCHEDULE.alpha[[-1, 0]], SCHEDULE.sigma[[-1, 0]]
    stretch = np.sqrt((a1**2 * 0.09 + s1**2) / (a0**2 * 0.09 + s0**2))
    x = a1 * 0.4 + stretch * (START - a0 * 0.4)
    expected = 0.4 + a1 * 0.09 / (a1**2 * 0.09 + s1**2) * (x - a1 * 0.4)
    solved = exact_sample(START, SCHEDULE.lam[-1], SCHEDULE.lam[0])
    np.testing.assert_allclose(solved, expected, atol=1e-11)


def test_heun_evaluates_twice_a_step_but_once_in_the_last():
    assert make_plan("heun", SCHEDULE, steps=10).nfe == 19


@pytest.mark.parametrize(("solver", "options"), [("ddpm", {}), ("dpmpp_2m_sde", {}), ("dpmpp_1", {"sde": True})])
def test_stochastic_solvers_draw_from_the_mixture(solver, options):
    """Two hundred steps of noise leave the moments of the data."""
    rng = np.random.default_rng(0)
    plan = make_plan(solver, SCHEDULE, timesteps=uniform_in_lambda(200), **options)
    denoise = network(levels(SCHEDULE.alphas_cumprod))
    x = plan.run(denoise, rng.standard_normal((2000, 4)), lambda row: rng.standard_normal((2000, 4)))
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (DEVIATIONS**2 + (MEANS - mean) ** 2)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / x.size)
    assert abs(x.var() / variance - 1) < 0.06
