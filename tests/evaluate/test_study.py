"""The front, the advice, and what a study tries."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ddpm_deploy.bundle import Defaults
from ddpm_deploy.evaluate.jackknife import jackknife_error, paired_error
from ddpm_deploy.evaluate.measure import Request
from ddpm_deploy.evaluate.pareto import MARGIN, Trial, pareto_front, recommend
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.evaluate.study import as_defaults, check_lists, entries


def trial(nfe: int, distance: float, solver: str = "unipc", spacing: str = "trailing", error: float = 0.1) -> Trial:
    return Trial(solver, spacing, nfe, nfe, distance, error, nfe * 1e-3)


REQUEST = Request(8, 0, 8, {"labels": np.arange(8)})
FULL = trial(1000, 1.0, "ddpm", "all")


def test_on_the_front_no_other_is_as_cheap_and_as_near():
    trials = [FULL, trial(4, 5), trial(4, 4, "ddim"), trial(6, 4.5), trial(8, 2), trial(10, 2), trial(20, 0.5)]
    assert [(t.nfe, t.distance) for t in pareto_front(trials)] == [(4, 4), (8, 2), (20, 0.5)]


def test_the_advice_is_the_fewest_evaluations_within_two_errors_of_the_full_chain():
    trials = [FULL, trial(4, 5), trial(8, 1.19), trial(12, 1.01), trial(20, 0.5)]
    assert recommend(trials, FULL).nfe == 8
    assert recommend([FULL, trial(8, 1.3), trial(12, 1.25)], FULL) is FULL


def test_the_advice_rests_on_the_error_of_the_difference_where_that_is_known():
    """The same noise is in both, so a plan may be surely worse although each distance is uncertain by as much."""
    worse, alike = replace(trial(4, 1.15), apart_error=0.01), replace(trial(6, 1.03), apart_error=0.01)
    assert recommend([FULL, worse, alike], FULL) is alike
    assert recommend([FULL, replace(worse, apart_error=0.07), alike], FULL).nfe == 4
    assert recommend([FULL, replace(alike, distance=1.0 + MARGIN / 2, apart_error=0.0)], FULL).nfe == 6


def test_what_samples_of_the_same_noise_share_is_no_part_of_the_error_of_their_difference():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(400, 2))
    other = one + 0.01 * rng.normal(size=(400, 2))

    def mean(values):
        return float(values.mean())

    apart, alone = (one - other).mean(axis=1), jackknife_error(mean, one)
    assert paired_error(mean, one, other, 40) == pytest.approx(apart.std() / 20, rel=0.3)
    assert paired_error(mean, one, other, 40) < 0.05 * alone
    assert paired_error(mean, one, one) == 0


def test_the_full_chain_comes_first_and_only_deterministic_plans_are_tuned(sampler):
    found = list(entries(sampler, ["ddim", "ddpm", "heun"], ["logsnr", "tuned"], [4, 3], State(None), REQUEST))
    assert (found[0].plan.nfe, found[0].spacing) == (1000, "all")
    pairs = [(entry.solver, entry.spacing, entry.plan.nfe) for entry in found[1:]]
    assert pairs == [
        ("ddim", "logsnr", 3), ("ddim", "tuned", 3), ("ddim", "logsnr", 4), ("ddim", "tuned", 4),
        ("ddpm", "logsnr", 3), ("ddpm", "logsnr", 4),
        ("heun", "logsnr", 3), ("heun", "tuned", 3),
    ]  # fmt: skip
    assert found[2].timesteps == tuple(found[2].plan.t)


def test_tuned_timesteps_are_kept_by_the_state(sampler, tmp_path):
    key = {"seed": 0}
    (_, first) = entries(sampler, ["ddim"], ["tuned"], [3], State.open(tmp_path, key), REQUEST)
    calls = []
    state = State.open(tmp_path, key)
    (_, again) = entries(sampler, ["ddim"], ["tuned"], [3], state, REQUEST, lambda: calls.append(1))
    assert again.timesteps == first.timesteps
    assert not calls


def test_plans_are_tuned_under_the_interval_of_guidance(sampler, monkeypatch):
    drawn = []

    def chosen(teacher, nfe, solver):
        drawn.append(teacher.draw(sampler.plan(solver, nfe)))
        return SimpleNamespace(timesteps=(999.0, 500.0, 1.0))

    monkeypatch.setattr("ddpm_deploy.evaluate.study.choose_timesteps", chosen)
    for interval in ((0, 300), None, (0, 999)):
        request = replace(REQUEST, guidance=6.0, interval=interval)
        list(entries(sampler, ["ddim"], ["tuned"], [3], State(None), request))
    inside, everywhere, again = drawn
    assert np.abs(inside - everywhere).max() > 0.1
    assert np.array_equal(everywhere, again)


def test_a_trial_becomes_the_defaults_of_a_bundle():
    own = Defaults("ddim", 10, "leading", {"eta": 0.5})
    assert as_defaults(trial(8, 1), own) == Defaults("unipc", 8, "trailing")
    tuned = Trial("unipc", "tuned", 3, 3, 1.0, 0.1, 0.1, (9.0, 4.0, 1.0))
    assert as_defaults(tuned, own) == Defaults("unipc", 3, "leading", {}, (9.0, 4.0, 1.0))
    assert as_defaults(FULL, own) == Defaults("ddpm", 1000, "linspace")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ((["magic"], ["tuned"], [4]), "--solvers: got 'magic', expected some of ddpm"),
        ((["ddim"], ["wide"], [4]), "--spacings: got 'wide', expected some of leading"),
        ((["ddim"], ["tuned"], [0]), "--nfes: got \\[0\\]"),
    ],
)
def test_what_there_is_not_is_refused(lists, message):
    with pytest.raises(ValueError, match=message):
        check_lists(*lists)
