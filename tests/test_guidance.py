"""Classifier-free guidance in the host's loop: what the weight, the interval and a missing label mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.guidance import Guidance, blend, guided

LABELS = np.array([2, 0, 1, 2])


@pytest.fixture(scope="module")
def sampler(guided_bundle: Path) -> Any:
    with Sampler.load(guided_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def unguided(labelled_bundle: Path) -> Any:
    with Sampler.load(labelled_bundle, threads=1) as opened:
        yield opened


def draw(sampler: Sampler, labels: Any = LABELS, n: int = 4, **options: Any) -> Any:
    condition = None if labels is None else {"labels": labels}
    return sampler.sample(n, solver="ddpm", steps=6, condition=condition, **options)


def test_a_guided_sample_follows_the_formula(sampler: Sampler) -> None:
    plan = sampler.plan("ddim", 5)
    x_T = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)

    def denoise(x: Any, t: Any) -> Any:
        with_label, without = (
            sampler.backend.run({"x": x, "t": t, "labels": labels})["prediction"].astype(np.float64)
            for labels in (LABELS, np.full(4, 3))
        )
        return without + 2.5 * (with_label - without)

    found = sampler.sample(x_T=x_T, plan=plan, condition={"labels": LABELS}, guidance=2.5)
    np.testing.assert_allclose(found, plan.run(denoise, x_T), atol=2e-5)


def test_weight_1_is_the_condition_as_it_is_to_the_bit_beside_others_too(sampler: Sampler) -> None:
    plain = draw(sampler)
    np.testing.assert_array_equal(draw(sampler, guidance=1.0), plain)
    mixed = draw(sampler, guidance=[1.0, 3.0, 1.0, 0.0])
    np.testing.assert_array_equal(mixed[[0, 2]], plain[[0, 2]])
    assert np.abs(mixed[1] - plain[1]).max() > 1e-3


def test_weight_0_is_unconditional_to_the_bit_and_so_is_a_missing_label(sampler: Sampler) -> None:
    unconditional = draw(sampler, np.full(4, 3))
    np.testing.assert_array_equal(draw(sampler, guidance=0.0), unconditional)
    np.testing.assert_array_equal(draw(sampler, guidance=[0.0, 3.0, 0.0, 0.0])[[0, 2, 3]], unconditional[[0, 2, 3]])
    np.testing.assert_array_equal(draw(sampler, None), unconditional)


def test_weights_of_their_own_in_one_batch_give_what_separate_runs_give(sampler: Sampler) -> None:
    weights = [0.5, 4.0, -1.0, 1.5]
    together = draw(sampler, guidance=weights)
    apart = [draw(sampler, LABELS[i : i + 1], 1, start=i, guidance=w) for i, w in enumerate(weights)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    np.testing.assert_array_equal(draw(sampler, guidance=weights, batch_size=3), together)


def test_the_interval_is_where_the_weight_counts_ends_included(sampler: Sampler) -> None:
    plan, seen = sampler.plan("ddim", timesteps=[90, 60, 30, 0]), []

    def evaluate(x: Any, t: Any, condition: Any) -> Any:
        seen.append((float(t[0]), len(x)))
        return x

    denoise = guided(
        evaluate, {"labels": LABELS[:2]}, {"labels": LABELS[:2]}, Guidance(np.float32([3, 2]), (30, 60)), 3
    )
    plan.run(denoise, np.zeros((2, 3, 8, 8), np.float32))
    assert seen == [(90, 2), (60, 4), (30, 4), (0, 2)]
    outside = draw(sampler, guidance=3.0, guidance_interval=(99.5, 99.9))
    np.testing.assert_array_equal(outside, draw(sampler))
    np.testing.assert_array_equal(draw(sampler, guidance=3.0, guidance_interval=(0, 99)), draw(sampler, guidance=3.0))


def test_rows_hold_the_weight_inside_the_interval_and_1_outside() -> None:
    rows = Guidance(np.float32([3, 2]), (30, 60)).rows(np.array([90.0, 60.0, 29.5]))
    np.testing.assert_array_equal(rows, np.float32([[1, 1], [3, 2], [1, 1]]))
    np.testing.assert_array_equal(Guidance(np.float32([3, 2])).rows(np.zeros(2)), np.float32([[3, 2], [3, 2]]))


def test_a_learned_variance_is_interpolated_and_never_exaggerated() -> None:
    toward, away = np.full((5, 2, 1), 2.0, np.float32), np.zeros((5, 2, 1), np.float32)
    found = blend(toward, away, np.float32([-1, 0, 0.5, 1, 3]), 1)
    np.testing.assert_array_equal(found[:, 0, 0], [-2, 0, 1, 2, 6])
    np.testing.assert_array_equal(found[:, 1, 0], [0, 0, 1, 2, 2])


def test_a_stream_is_guided_as_a_sample_is(sampler: Sampler) -> None:
    options = {"solver": "ddim", "steps": 4, "condition": {"labels": 1}, "guidance": 2.0, "guidance_interval": (20, 80)}
    *_, last = sampler.stream(2, **options)
    np.testing.assert_array_equal(last.x, sampler.sample(2, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "3"}, "guidance: got '3'"),
        ({"guidance": [1.0, 2.0]}, r"guidance: got float64 \(2,\), expected a finite number or \(4,\)"),
        ({"guidance": np.nan}, "guidance: got nan"),
        ({"guidance": 2.0, "guidance_interval": (5, 1)}, "guidance_interval: got"),
        ({"guidance": 2.0, "guidance_interval": (5,)}, "guidance_interval: got"),
        ({"guidance_interval": (1, 5)}, "guidance_interval: given beside a guidance of 1"),
        ({"guidance": 2.0, "labels": None}, "guidance: got a weight, but no condition"),
        ({"labels": 4}, "condition 'labels': expected classes from 0 to 2, or 3 for none"),
    ],
)
def test_what_cannot_be_meant_is_refused(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(sampler, **options)


def test_a_model_without_a_null_takes_no_guidance_and_no_missing_label(unguided: Sampler) -> None:
    with pytest.raises(ValueError, match="guidance: got a weight, but the model has no condition with a null"):
        draw(unguided, guidance=2.0)
    with pytest.raises(ValueError, match="condition: got none, expected labels"):
        draw(unguided, None)
    assert np.isfinite(draw(unguided, guidance=1.0)).all()
