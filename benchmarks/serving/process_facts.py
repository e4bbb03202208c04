"""What a process holds, from /proc, and whether that stays flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_deploy.bench.statistics import STUDENT

BLOCKS, LEAST_BLOCKS = 12, 4


@dataclass(frozen=True)
class Holding:
    """At a moment. at_s: of running time. rss: bytes. files: descriptors."""

    at_s: float
    rss: int
    files: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """Of one figure over a run, by the slope of its block medians. low, high: 95 %. allowed: what is still flat."""

    first: float
    last: float
    growth: float
    low: float
    high: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it surely grew by no more than what is allowed."""
        return self.high <= self.allowed


def look(pid: int, at_s: float) -> Holding:
    """What a process holds now; OSError where there is none."""
    status = dict(
        line.split(None, 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if len(line.split()) > 1
    )
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Holding(at_s, 1024 * int(status["VmRSS:"].split()[0]), files, int(status["Threads:"]))


def growth(at_s: Sequence[float], values: Sequence[float], allowed: float) -> Growth:
    """Judge a figure that was looked at at those moments, all after the warm-up.

    The moments are cut into blocks, whose medians know little of each other; through these goes the line. ValueError
    for fewer moments than a line needs.
    """
    blocks = min(BLOCKS, len(values) // 2)
    if blocks < LEAST_BLOCKS:
        raise ValueError(f"moments: got {len(values)}, expected at least {2 * LEAST_BLOCKS}; run for longer")
    x = np.array([np.mean(part) for part in np.array_split(np.asarray(at_s, float), blocks)])
    y = np.array([np.median(part) for part in np.array_split(np.asarray(values, float), blocks)])
    spread = x - x.mean()
    slope = float(spread @ y / (spread @ spread))
    rest = y - y.mean() - slope * spread
    error = math.sqrt(float(rest @ rest) / (blocks - 2) / float(spread @ spread))
    over = float(at_s[-1] - at_s[0])
    margin = STUDENT[blocks - 3] * error
    return Growth(float(y[0]), float(y[-1]), slope * over, (slope - margin) * over, (slope + margin) * over, allowed)
