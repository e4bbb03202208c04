"""Which timesteps the named spacings take, against diffusers and the formulas."""

import numpy as np
import pytest

from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.spacing import SPACINGS, check_timesteps, make_timesteps

LINEAR = NoiseSchedule.linear()
FLOW = NoiseSchedule.flow_matching()


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear, NoiseSchedule.cosine, NoiseSchedule.sigmoid, NoiseSchedule.flow_matching]
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_count_gives_strictly_falling_timesteps(spacing, schedule):
    for T in (1, 2, 3, 7, 10, 41):
        made = schedule(T)
        for steps in range(1, T + 1):
            t = make_timesteps(made, steps, spacing)
            assert t.shape == (steps,)
            assert t.dtype == np.float64
            np.testing.assert_array_equal(check_timesteps(made, t), t)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [LINEAR, FLOW, NoiseSchedule.cosine()], ids=["linear", "flow", "cosine"])
@pytest.mark.parametrize("steps", [333, 999, 1000])
def test_many_steps_of_a_long_schedule_are_strictly_falling(spacing, schedule, steps):
    check_timesteps(schedule, make_timesteps(schedule, steps, spacing))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_as_many_steps_as_timesteps_are_all_of_them(spacing):
    np.testing.assert_array_equal(make_timesteps(LINEAR, 1000, spacing), np.arange(1000)[::-1])


@pytest.mark.parametrize("spacing", sorted(set(SPACINGS) - {"leading"}))
@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["linear", "flow"])
def test_all_spacings_but_leading_start_exactly_at_the_noisiest(spacing, schedule):
    for steps in (1, 2, 13, 100):
        assert make_timesteps(schedule, steps, spacing)[0] == 999


@pytest.mark.parametrize("spacing", sorted(set(SPACINGS) - {"trailing"}))
def test_all_spacings_but_trailing_end_exactly_at_zero(spacing):
    for steps in (2, 13, 100):
        assert make_timesteps(LINEAR, steps, spacing)[-1] == 0


def test_trailing_by_hand():
    np.testing.assert_array_equal(make_timesteps(LINEAR, 4, "trailing"), [999, 749, 499, 249])
    np.testing.assert_array_equal(make_timesteps(NoiseSchedule.linear(10), 3, "trailing"), [9, 6, 2])


def test_leading_by_hand():
    np.testing.assert_array_equal(make_timesteps(LINEAR, 4, "leading"), [750, 500, 250, 0])
    np.testing.assert_array_equal(make_timesteps(NoiseSchedule.linear(10), 3, "leading"), [6, 3, 0])


def test_quadratic_has_evenly_spaced_square_roots():
    roots = np.sqrt(make_timesteps(LINEAR, 11, "quadratic"))
    np.testing.assert_allclose(np.diff(roots), -np.sqrt(999) / 10, rtol=1e-12)


def test_logsnr_is_even_in_lambda():
    lam = np.interp(make_timesteps(LINEAR, 25, "logsnr"), np.arange(1000), LINEAR.lam)
    np.testing.assert_allclose(np.diff(lam), (LINEAR.lam[0] - LINEAR.lam[-1]) / 24, rtol=1e-10)


def test_karras_is_even_in_the_seventh_root_of_sigma_over_alpha():
    lam = np.interp(make_timesteps(LINEAR, 25, "karras"), np.arange(1000), LINEAR.lam)
    root = np.exp(-lam / 7)
    np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / 24, rtol=1e-8)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_integer_spacings_agree_with_diffusers(spacing):
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing=spacing)
    for steps in [*range(2, 60), 100, 250, 333, 500, 1000]:
        scheduler.set_timesteps(steps)
        ours, theirs = make_timesteps(LINEAR, steps, spacing), scheduler.timesteps.numpy()
        stride = {"leading": 1, "trailing": 1000 / steps, "linspace": 999 / (steps - 1)}[spacing]
        tie = np.isclose(np.arange(steps) * stride % 1, 0.5)  # the last bit decides how these are rounded
        np.testing.assert_array_equal(ours[~tie], theirs[~tie])
        np.testing.assert_allclose(ours[tie], theirs[tie], atol=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("spacing", "config"), [("karras", "use_karras_sigmas"), ("logsnr", "use_exponential_sigmas")])
@pytest.mark.parametrize("steps", [2, 10, 25])
def test_fractional_spacings_agree_with_diffusers(spacing, config, steps):
    euler = pytest.importorskip("diffusers").EulerDiscreteScheduler
    scheduler = euler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **{config: True})
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(make_timesteps(LINEAR, steps, spacing), scheduler.timesteps.numpy(), atol=0.02)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10.0, True, "10", None, np.float64(3)])
def test_a_bad_number_of_steps_is_refused_by_name(steps):
    with pytest.raises(ValueError, match=r"steps: got .*expected a whole number from 1 to 1000"):
        make_timesteps(LINEAR, steps)


def test_numpy_integers_are_whole_numbers():
    assert len(make_timesteps(LINEAR, np.int64(5))) == 5


def test_an_unknown_spacing_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"spacing: got 'even', expected one of leading, .*karras"):
        make_timesteps(LINEAR, 5, "even")


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([1, 2], r"timesteps\[1\] = 2 is not below \[0\] = 1"),
        ([5, 5], r"timesteps\[1\] = 5 is not below \[0\] = 5"),
        ([1000], r"timesteps\[0\]: got 1000.0, expected a number in \[0, 999\]"),
        ([5, -1], r"timesteps\[1\]: got -1.0"),
        ([5, float("nan")], r"timesteps\[1\]: got nan"),
        ([], r"timesteps: got shape \(0,\)"),
        ([[5, 4]], r"timesteps: got shape \(1, 2\)"),
        (7, r"timesteps: got shape \(\)"),
    ],
)
def test_a_bad_list_of_timesteps_is_refused_by_its_entry(timesteps, message):
    with pytest.raises(ValueError, match=message):
        check_timesteps(LINEAR, timesteps)
