"""What the parity figures mean, on denoisers whose error is known."""

from dataclasses import replace

import numpy as np
import pytest

from ddpm_deploy.errors import NonFiniteError
from ddpm_deploy.noise import initial_noise, row_noise
from ddpm_deploy.parity import Budget, Comparison, budget_for, compare, relative_l2, replay
from ddpm_deploy.parity.measure import clean_error
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
SHAPE = (2, 5)
START = initial_noise(0, range(3), SHAPE)


def truth(x, t):
    return np.tanh(x) * (0.5 + t[:, None, None] / 200)


def only(plan, candidate, noise=None) -> Comparison:
    (result,) = compare(truth, {"candidate": candidate}, plan, START, noise)
    return result


def test_a_denoiser_is_equal_to_itself() -> None:
    result = only(make_plan("unipc", SCHEDULE, 8), truth)
    assert result.prediction_relative_l2.max() == result.drift_max_abs.max() == result.final_max_abs == 0
    assert result.final_psnr_db == np.inf
    assert result.to_dict()["final_psnr_db"] is None


def test_a_relative_error_is_measured_as_it_is() -> None:
    result = only(make_plan("ddim", SCHEDULE, 8), lambda x, t: truth(x, t) * np.float32(1.01))
    np.testing.assert_allclose(result.prediction_relative_l2, 0.01, rtol=1e-4)


def test_the_teacher_forced_state_error_is_what_the_row_makes_of_the_prediction_error() -> None:
    plan = make_plan("ddim", SCHEDULE, 8)
    result = only(plan, lambda x, t: truth(x, t) + np.float32(0.01))
    expected = np.abs(plan.update[:, 0, 1] * plan.predict[:, 1]) * 0.01
    np.testing.assert_allclose(result.next_state_max_abs, expected, rtol=1e-2)


def test_the_free_run_is_the_candidates_own() -> None:
    def candidate(x, t):
        return truth(x, t) + np.float32(0.003)

    noise = np.stack([row_noise(0, range(3), row, SHAPE) for row in range(6)])
    plan = make_plan("ddpm", SCHEDULE, 6)
    result = only(plan, candidate, noise)
    difference = plan.run(candidate, START, noise).astype(float) - plan.run(truth, START, noise)
    assert result.final_max_abs == pytest.approx(np.abs(difference).max(), rel=1e-6)
    mse = np.mean(difference**2, axis=(1, 2)).max()
    assert result.final_psnr_db == pytest.approx(10 * np.log10(4 / mse), rel=1e-6)


def test_the_first_row_over_budget_is_found() -> None:
    plan = make_plan("ddim", SCHEDULE, 10, "trailing")
    late = float(plan.t[6])
    result = only(plan, lambda x, t: truth(x, t) + (t[0] <= late) * np.float32(0.1))
    assert result.first_drift_over(1e-4) == 6
    assert result.first_drift_over(1e9) is None


def test_a_nan_in_a_candidate_is_over_budget_from_its_row_on_and_stops_no_other() -> None:
    plan = make_plan("ddim", SCHEDULE, 6)
    bad, good = compare(
        truth,
        {"bad": lambda x, t: truth(x, t) * np.float32(np.nan if t[0] <= plan.t[2] else 1), "good": truth},
        plan,
        START,
    )
    assert Budget().failures(bad) == [f"the output is not finite at t = {plan.t[2]:g}"]
    assert bad.to_dict()["drift_max_abs"] == [0, 0, None, None, None, None]
    assert bad.to_dict()["final_max_abs"] is None
    assert (good.final_max_abs, Budget(0, 0, 200).failures(good)) == (0, [])


def test_a_nan_in_the_reference_is_an_error() -> None:
    with pytest.raises(NonFiniteError):
        compare(lambda x, t: x * np.nan, {"candidate": truth}, make_plan("ddim", SCHEDULE, 3), START)


def test_a_replay_of_recorded_outputs_stands_for_the_reference() -> None:
    plan = make_plan("unipc", SCHEDULE, 5)
    outputs = []
    plan.run(lambda x, t: outputs.append(truth(x, t)) or outputs[-1], START)
    (result,) = compare(replay(outputs), {"live": truth}, plan, START)
    assert result.final_max_abs == 0


def test_the_worst_sample_of_a_batch_counts() -> None:
    value = np.array([[1.0, 0.0], [0.0, 2.2]])
    assert relative_l2(value, np.array([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(0.1)


def test_a_budget_says_what_is_over_it() -> None:
    result = only(make_plan("ddim", SCHEDULE, 8), lambda x, t: truth(x, t) * np.float32(1.01))
    assert Budget().failures(result) == []
    step, final, psnr = Budget(1e-5, 1e-6, 200.0).failures(result)
    assert step.startswith("relative error of one step 0.01 at t = ")
    assert "final error" in final
    assert psnr.endswith("is under 200 dB")


@pytest.mark.parametrize("budget", [Budget(), Budget(1.0, 1.0, 1.0)])
def test_a_nan_figure_is_over_every_budget(budget: Budget) -> None:
    nan = np.array([np.nan])
    assert budget.failures(Comparison("c", np.array([5.0]), nan, nan, nan, np.nan, np.nan)) == [
        "the output is not finite at t = 5"
    ]


def test_an_error_at_a_single_point_counts_as_a_step() -> None:
    result = only(make_plan("ddim", SCHEDULE, 4), truth)
    result = replace(result, points_t=np.array([3.0, 8.0]), points_relative_l2=np.array([0.0, 0.5]))
    assert Budget(1e-5).failures(result) == ["relative error of one step 0.5 at t = 8 is over 1e-05"]
    assert result.to_dict()["points_relative_l2"] == [0.0, 0.5]


def test_an_evaluation_is_judged_by_the_clean_image_where_the_output_magnifies_what_is_too_fine_for_float32() -> None:
    """At noise sigma the output of a network that tells noise from picture changes by 1 / sigma of what x does."""
    x = right = np.ones((2, 1, 4), np.float32)
    value = right + np.array([1e-5, 2e-5], np.float32)[:, None, None]
    assert clean_error((1.0, -0.01), x, value, right) == pytest.approx([1e-7 / 0.99, 2e-7 / 0.99], rel=1e-2)
    assert clean_error((100.0, -99.0), x, value, right) == pytest.approx([99e-5, 198e-5], rel=1e-2)
    rows = (np.array([100.0, 1.0]), np.array([-99.0, -0.01]))
    assert clean_error(rows, x, value, right) == pytest.approx([99e-5, 2e-7 / 0.99], rel=1e-2)
    result = only(make_plan("ddim", SCHEDULE, 8, "linspace"), lambda x, t: truth(x, t) + np.float32(1e-3))
    raw, clean = result.prediction_relative_l2, result.clean_relative_l2
    assert raw[0] < clean[0], "in noise alone the output says more than the image that is divided by alpha"
    assert clean[-1] < 0.1 * raw[-1]
    assert result.worst_step[0] == np.minimum(raw, clean).max() < raw.max()


def test_a_learned_variance_is_judged_beside_the_image() -> None:
    x, truth = np.ones((1, 1, 4), np.float32), np.ones((1, 2, 4), np.float32)
    value = truth.copy()
    value[:, 1] += 0.01
    assert clean_error((1.0, -0.01), x, value, truth) == pytest.approx([0.01 / np.sqrt(2)], rel=1e-3)


def test_an_unknown_precision_has_no_budget() -> None:
    with pytest.raises(ValueError, match="known: fp32, bf16"):
        budget_for("int3")
