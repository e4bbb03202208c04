"""Rows of several plans, applied as one, give each sample the bits that its own row gives it."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm_deploy.plan import Row
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import SOLVERS, make_plan

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
SHAPE = (2, 3, 5)


def inputs(K: int, B: int, channels: int = 2):
    rng = np.random.default_rng(K)
    state = [rng.standard_normal((B, *SHAPE), np.float32) for _ in range(K)]
    return state, rng.standard_normal((B, channels, *SHAPE[1:]), np.float32), state[0][::-1].copy()


def assert_stacked_as_alone(rows: list[Row], channels: int = 2) -> None:
    state, m, z = inputs(len(rows[0].to_state), len(rows), channels)
    found, found_x0 = Row.stack(rows, len(SHAPE)).apply(state, m, z)
    for i, row in enumerate(rows):
        one = slice(i, i + 1)
        expected, x0 = row.apply([image[one] for image in state], m[one], z[one])
        np.testing.assert_array_equal(found_x0[one], x0)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a[one], b)


@pytest.mark.parametrize("solver", SOLVERS)
def test_stacked_rows_give_each_sample_its_own_bits(solver: str) -> None:
    plans = [make_plan(solver, SCHEDULE, steps, clip=clip) for steps in (5, 8) for clip in ((-1, 1), (-2, 0.5))]
    rows = [plan.row(i) for plan in plans for i in range(len(plan))]
    patterns = {row.pattern for row in rows}
    assert len(patterns) < len(rows) / 2
    for pattern in patterns:
        assert_stacked_as_alone([row for row in rows if row.pattern == pattern])


def test_a_learned_variance_is_that_of_each_row() -> None:
    plan = make_plan("ddpm", SCHEDULE, 9, variance="learned")
    assert_stacked_as_alone([plan.row(i) for i in range(8)], channels=4)


def test_rows_that_are_one_and_the_same_need_no_stack() -> None:
    row = make_plan("unipc", SCHEDULE, 5).row(2)
    assert Row.stack([row, row], 3) is row


def test_rows_of_different_patterns_are_refused() -> None:
    plan = make_plan("unipc", SCHEDULE, 5)
    with pytest.raises(ValueError, match="got several patterns"):
        Row.stack([plan.row(0), plan.row(2)], 3)
