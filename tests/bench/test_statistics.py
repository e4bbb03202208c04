"""What is said of timings: known answers, and intervals that cover what they claim to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student_t

from ddpm_deploy.bench.statistics import (
    BEYOND,
    STUDENT,
    Interval,
    bootstrap_median,
    paired_difference,
    paired_ratio,
    percentile,
    summarise,
)


def test_median_percentile_and_worst_of_known_samples() -> None:
    found = summarise([float(k) for k in range(1, 101)])
    assert (found.n, found.median.value, found.worst) == (100, 50.5, 100.0)
    assert found.p90 == pytest.approx(90.1)
    assert found.cv == pytest.approx(np.std(range(1, 101), ddof=1) / 50.5)


@pytest.mark.parametrize(("part", "enough"), [(0.90, 10 * BEYOND), (0.99, 100 * BEYOND), (0.5, 2 * BEYOND)])
def test_percentile_needs_five_samples_beyond_it(part: float, enough: int) -> None:
    samples = np.arange(float(enough))
    assert percentile(samples, part) == pytest.approx(np.quantile(samples, part))
    assert percentile(samples[:-1], part) is None


def test_single_sample_has_a_median_and_is_not_to_be_quoted() -> None:
    found = summarise([2.0])
    assert found.median == Interval(2.0, 2.0, 2.0)
    assert (found.p90, found.cv, found.noisy) == (None, 0.0, True)


def test_ten_equal_samples_are_quotable_and_nine_are_not() -> None:
    assert not summarise([1.0] * 10).noisy
    assert summarise([1.0] * 9).noisy


def test_median_that_may_be_off_by_a_tenth_is_noisy() -> None:
    rng = np.random.default_rng(0)
    assert not summarise(np.exp(rng.normal(0, 0.02, 100))).noisy
    assert summarise(np.exp(rng.normal(0, 0.8, 100))).noisy


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="samples: got none, expected at least one"):
        summarise([])


def test_interval_is_the_same_for_the_same_values() -> None:
    values = np.random.default_rng(3).lognormal(size=80)
    assert bootstrap_median(values) == bootstrap_median(values)
    wide, narrow = bootstrap_median(values, confidence=0.99), bootstrap_median(values, confidence=0.5)
    assert wide.low < narrow.low <= wide.value <= narrow.high < wide.high


@pytest.mark.parametrize("rounds", [30, 200])
def test_interval_of_95_percent_covers_the_median_about_that_often(rounds: int) -> None:
    """Independent lognormal samples, whose median is 1."""
    draws = np.random.default_rng(1).lognormal(0, 0.3, (200, rounds))
    covered = np.mean([bootstrap_median(values, resamples=400).covers(1.0) for values in draws])
    assert 0.89 <= covered <= 0.99


def test_blocks_keep_the_interval_honest_where_neighbours_are_alike() -> None:
    """An autoregressive drift: the interval has to be much wider than that of the same values shuffled."""
    rng, n = np.random.default_rng(2), 400
    steps, values = rng.normal(0, 0.1, n), np.zeros(n)
    for k in range(1, n):
        values[k] = 0.8 * values[k - 1] + steps[k]
    drifting, shuffled = (bootstrap_median(np.exp(v)) for v in (values, rng.permutation(values)))
    assert drifting.high - drifting.low > 1.3 * (shuffled.high - shuffled.low)


def test_ratio_of_pairs_is_exact_whatever_the_rounds_share() -> None:
    shared = np.random.default_rng(0).lognormal(0, 1.0, 50)
    assert paired_ratio(3 * shared, shared) == Interval(*[pytest.approx(3.0)] * 3)


def test_table_of_student_is_that_of_scipy() -> None:
    expected = student_t.ppf(0.975, np.arange(1, len(STUDENT) + 1))
    np.testing.assert_allclose(STUDENT, expected, atol=6e-4)


def test_one_opening_is_no_sample_of_openings() -> None:
    shared = np.random.default_rng(0).lognormal(0, 0.1, 60)
    times = shared * np.random.default_rng(1).lognormal(0, 0.01, 60)
    assert paired_ratio(times, shared, (60,)) == paired_ratio(times, shared)


def test_interval_over_openings_holds_a_bias_of_each_opening_that_rounds_cannot_see() -> None:
    """Each opening is off by its own percent or so for all of its rounds; the truth is 1."""
    held = {"openings": 0, "rounds": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        bias = np.repeat(rng.normal(0, 0.015, 6), 50)
        times = np.exp(bias + rng.normal(0, 0.02, 300))
        held["openings"] += paired_ratio(times, np.ones(300), (50,) * 6).covers(1)
        held["rounds"] += paired_ratio(times, np.ones(300)).covers(1)
    assert 182 <= held["openings"] <= 199  # 95 % of 200, three deviations to each side
    assert held["rounds"] < 120


def test_median_of_a_row_is_over_its_openings_too() -> None:
    times = np.repeat([1.0, 1.1, 1.21], 20)
    found = summarise(times, (20, 20, 20)).median
    assert found.value == pytest.approx(1.1)
    assert found.low == pytest.approx(1.1 * np.exp(-4.303 * np.log(1.1) / np.sqrt(3)))


@pytest.mark.parametrize("openings", [(7, 7), (13, 0), (6, 6, 6), (1,) * 13])
def test_openings_that_are_not_the_rounds_are_an_error(openings: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected at most 12 parts of 13 rounds"):
        paired_ratio([1.0] * 13, [1.0] * 13, openings)


@pytest.mark.parametrize("others", [[1.0], [1.0, 2.0, 3.0], []])
def test_ratio_of_unequal_rounds_is_an_error(others: list[float]) -> None:
    with pytest.raises(ValueError, match="expected the same number, at least one"):
        paired_ratio([1.0, 2.0] if others else [], others)


def test_paired_difference_is_as_narrow_as_what_pairs_do_not_share() -> None:
    rng = np.random.default_rng(0)
    shared, held = rng.normal(0, 5, 400), 0
    for _ in range(200):
        difference = paired_difference(shared + rng.normal(0.3, 1, 400), shared)
        assert difference.high - difference.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
        held += difference.covers(0.3)
    assert 180 <= held <= 199
    with pytest.raises(ValueError, match="pairs: got 2 and 3 values"):
        paired_difference([1, 2], [1, 2, 3])
