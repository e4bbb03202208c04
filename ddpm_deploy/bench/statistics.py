"""What may be said of repeated timings: medians, percentiles that their count supports, paired ratios, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
BEYOND = 5  # samples that must lie beyond a percentile for it to be quoted
QUOTABLE = 0.05  # half-width of the median's interval over the median, at most

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)  # t of 97.5 %, 1 to 11 degrees

Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float

    def covers(self, truth: float) -> bool:
        """Whether the interval holds `truth`."""
        return self.low <= truth <= self.high


@dataclass(frozen=True)
class Summary:
    """Of one row, in the unit of its samples. p90, p99: None where too few samples lie beyond them.

    cv: standard deviation over mean. noisy: whether the median is too uncertain to quote.
    """

    n: int
    median: Interval
    p90: float | None
    p99: float | None
    worst: float
    cv: float
    noisy: bool


def summarise(samples: Sequence[float], openings: Sequence[int] = ()) -> Summary:
    """The figures of one row; openings: as for `paired_ratio`."""
    values = np.asarray(samples, np.float64)
    if values.size < 1:
        raise ValueError("samples: got none, expected at least one")
    median = _middle(values, openings)
    return Summary(
        n=values.size,
        median=median,
        p90=percentile(values, 0.90),
        p99=percentile(values, 0.99),
        worst=float(values.max()),
        cv=float(values.std(ddof=1) / values.mean()) if values.size > 1 else 0.0,
        noisy=values.size < 2 * BEYOND or (median.high - median.low) / 2 > QUOTABLE * median.value,
    )


def percentile(samples: ArrayLike, part: float) -> float | None:
    """The percentile, or None where fewer than `BEYOND` samples lie beyond it: p90 takes 50 samples, p99 takes 500."""
    values = np.asarray(samples, np.float64)
    if round(values.size * (1 - part), 6) < BEYOND:
        return None
    return float(np.quantile(values, part))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], openings: Sequence[int] = ()) -> Interval:
    """The median over the rounds of one contender's time over another's in the same round.

    openings: how many of the rounds followed each opening of the contenders, where they were opened several times. The
    geometric mean of the openings' medians then is the value. Which memory a copy gets changes its speed by a percent
    and stays the same for all of its rounds, so the interval is Student's over the openings, not the rounds (Kalibera
    and Jones 2013).
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if above.shape != below.shape or not above.size:
        raise ValueError(f"rounds: got {above.size} and {below.size}, expected the same number, at least one")
    return _middle(above / below, openings)


def paired_difference(minuend: Sequence[float], subtrahend: Sequence[float]) -> Interval:
    """The mean of the differences, with its normal interval; each pair has something in common, such as a seed."""
    above, below = np.asarray(minuend, np.float64), np.asarray(subtrahend, np.float64)
    if above.shape != below.shape or above.size < 2:
        raise ValueError(f"pairs: got {above.size} and {below.size} values, expected the same number, at least two")
    difference = above - below
    middle = float(difference.mean())
    width = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return Interval(middle, middle - width, middle + width)


def check_openings(openings: Sequence[int], rounds: int) -> None:
    """ValueError for parts that are not the rounds, or more than `STUDENT` knows."""
    if openings and (sum(openings) != rounds or min(openings) < 1 or len(openings) > len(STUDENT) + 1):
        most = len(STUDENT) + 1
        raise ValueError(f"openings: got {list(openings)}, expected at most {most} parts of {rounds} rounds")


def _middle(values: Array, openings: Sequence[int]) -> Interval:
    """The median of one opening's values, or the geometric mean of several openings' medians."""
    check_openings(openings, values.size)
    if len(openings) < 2:
        return bootstrap_median(values)
    logs = np.log([np.median(part) for part in np.split(values, np.cumsum(openings)[:-1])])
    middle, degrees = logs.mean(), len(logs) - 1
    width = STUDENT[degrees - 1] * logs.std(ddof=1) / np.sqrt(len(logs))
    return Interval(*(float(np.exp(edge)) for edge in (middle, middle - width, middle + width)))


def bootstrap_median(values: Array, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES) -> Interval:
    """The median with its percentile-bootstrap interval (Efron 1979), over blocks of rounds (Kuensch 1989).

    Blocks of about n^(1/3) rounds keep the interval honest where slow drift makes neighbours alike. The same values
    give the same interval.
    """
    n = len(values)
    length = max(1, round(n ** (1 / 3)))
    starts = np.random.default_rng(0).integers(0, n, (resamples, -(-n // length)))
    chosen = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :n] % n  # circular
    medians = np.median(values[chosen], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.median(values)), float(low), float(high))
