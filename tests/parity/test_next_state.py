"""The error of the next state in picture units, on denoisers whose error is known."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy.bundle import Condition, Defaults, Manifest, ModelInfo, OutputAffine
from ddpm_deploy.parity.budget import BUDGETS, Budget, budget_for
from ddpm_deploy.parity.next_state import (
    NextState,
    ddpm_plan,
    default_plan,
    mean_error,
    measure_file,
    picture_range,
    plot,
    teacher_forced,
)
from ddpm_deploy.schedule import NoiseSchedule

SHAPE = (2, 4, 4)


def manifest(**fields) -> Manifest:
    known = {
        "model": ModelInfo("toy", "1", "Apache-2.0", {}),
        "sample_shape": SHAPE,
        "output": OutputAffine((127.5,), (127.5,), "8-bit"),
        "prediction": "eps",
        "variance": "small",
        "schedule": NoiseSchedule.linear(40, 1e-3, 0.2),
        "clip": None,
        "conditions": (),
        "defaults": Defaults("ddim", 6, "trailing"),
        "network": None,
        "files": (),
        "reference": None,
    }
    return Manifest(**{**known, **fields})


def truth(feeds):
    x, t = feeds["x"], feeds["t"]
    shift = feeds["labels"][:, None, None, None] / np.float32(10) if "labels" in feeds else 0
    return np.tanh(x) * (0.5 + t[:, None, None, None] / 100).astype(np.float32) + shift


def shifted(by: float):
    return lambda feeds: truth(feeds) + np.float32(by)


def test_a_runtime_that_agrees_has_no_error() -> None:
    figures = measure_file(truth, truth, manifest())
    assert figures.relative_l2.max() == figures.rms.max() == figures.max_abs.max() == figures.final_max_abs == 0
    assert figures.final_psnr_db == np.inf
    assert figures.as_parity() == {
        "relative_l2": 0,
        "next_state_rms": 0,
        "next_state_max": 0,
        "final_max_abs": 0,
        "final_psnr_db": 200,
        "timesteps": 46,
    }
    assert all(figures.failures(budget) == [] for budget in BUDGETS.values())


def test_the_error_is_what_the_rows_make_of_the_outputs_error_over_the_range() -> None:
    figures = measure_file(shifted(0.01), truth, manifest())
    plans = (default_plan(manifest()), ddpm_plan(manifest(), None))
    gains = np.concatenate([np.abs(p.update[:, 0, 1] * p.predict[:, 1]) for p in plans])
    np.testing.assert_allclose(figures.rms, gains * 0.01 / 2, rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(figures.max_abs, gains * 0.01 / 2, rtol=2e-2, atol=1e-6)


def test_units_are_of_the_pictures_range() -> None:
    wide = manifest(clip=(-80.0, 80.0))
    assert (picture_range(manifest()), picture_range(wide)) == (2, 160)
    narrow, broad = (measure_file(shifted(1e-3), truth, m, timesteps=6) for m in (manifest(clip=(-40.0, 40.0)), wide))
    assert narrow.rms[0] == pytest.approx(2 * broad.rms[0], rel=1e-2)


def test_the_rms_is_of_the_worst_sample_and_the_maximum_of_the_worst_pixel() -> None:
    def one_pixel(feeds):
        out = truth(feeds)
        out[-1, 0, 0, 0] += np.float32(0.1)
        return out

    figures = measure_file(one_pixel, truth, manifest(), batches=(3,))
    np.testing.assert_allclose(figures.max_abs[:-1], figures.rms[:-1] * np.sqrt(np.prod(SHAPE)), rtol=1e-3)


def test_a_runtime_that_is_wrong_at_one_batch_size_is_found_there() -> None:
    def odd(feeds):
        return truth(feeds) + np.float32(0.05 if len(feeds["x"]) == 5 else 0)

    found = measure_file(odd, truth, manifest(), batches=(1, 2, 5, 8))
    assert set(found.batch[found.rms > 1e-6]) == {5}
    assert ", batch 5, is over 0.0001" in found.failures(Budget(next_state_rms=1e-4))[0]
    assert measure_file(odd, truth, manifest(), batches=(1, 2, 8)).rms.max() == 0


def test_batches_are_evaluated_at_their_size_with_their_own_conditions() -> None:
    labelled = manifest(conditions=(Condition("labels", (), "int64", tuple("abcdefg")),))
    sizes = set()

    def candidate(feeds):
        n = len(feeds["x"])
        sizes.add(n)
        assert feeds["t"].shape == (n,)
        np.testing.assert_array_equal(feeds["labels"], np.arange(n) % 7)
        return truth(feeds)

    assert measure_file(candidate, truth, labelled, batches=(3, 7, 1), timesteps=6).rms.max() == 0
    assert sizes == {1, 3, 7}
    given = {"labels": np.array([4, 4, 4])}
    forced = teacher_forced(truth, labelled, default_plan(labelled), 3, given)
    assert all(step.feeds["labels"].tolist() == [4, 4, 4] for step in forced)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_over_every_budget_even_where_a_clip_would_hide_it(bad: float) -> None:
    def candidate(feeds):
        return truth(feeds) * np.float32(bad if feeds["t"][0] < 20 and len(feeds["x"]) == 2 else 1)

    figures = measure_file(candidate, truth, manifest(clip=(-1.0, 1.0)))
    assert len(figures.failures(Budget())) == 1
    assert figures.failures(Budget())[0].endswith("batch 2")
    assert figures.excess(Budget(next_state_rms=1.0)) == np.inf
    assert set(figures.as_parity()) == {"final_max_abs", "final_psnr_db", "timesteps"}
    everywhere = measure_file(lambda feeds: feeds["x"] * np.float32(bad), truth, manifest(), timesteps=6)
    assert everywhere.final_psnr_db == -np.inf
    assert everywhere.excess(budget_for("int8")) == np.inf


def test_samples_are_the_candidates_own_from_the_same_noise() -> None:
    figures = measure_file(shifted(0.02), truth, manifest(), batches=(2,), timesteps=6)
    plan = default_plan(manifest())
    (*_, expected), (*_, got) = (
        teacher_forced(evaluate, manifest(), plan, 2, {}) for evaluate in (truth, shifted(0.02))
    )
    difference = got.following.astype(float) - expected.following
    assert figures.final_max_abs == pytest.approx(np.abs(difference).max())
    mse = np.mean(difference**2, axis=(1, 2, 3)).max()
    assert figures.final_psnr_db == pytest.approx(10 * np.log10(4 / mse))


def test_the_trajectories_are_those_of_the_plans() -> None:
    plan = ddpm_plan(manifest(), None)
    steps = list(teacher_forced(truth, manifest(), plan, 3, {}, seed=5))
    from ddpm_deploy.noise import initial_noise, noise_source

    samples = plan.run(
        lambda x, t: truth({"x": x, "t": t}), initial_noise(5, range(3), SHAPE), noise_source(5, range(3), SHAPE)
    )
    np.testing.assert_array_equal(steps[-1].following, samples)
    assert [step.t for step in steps] == plan.t.tolist()


def test_no_step_of_the_chain_is_longer_than_those_of_the_default_solver() -> None:
    assert [len(ddpm_plan(manifest(), n)) for n in (None, 1000, 20, 6, 1)] == [40, 40, 20, 6, 6]


def test_a_learned_variance_is_part_of_the_next_state() -> None:
    learned = manifest(variance="learned")

    def doubled(by):
        return lambda feeds: np.concatenate([truth(feeds), np.full_like(feeds["x"], by)], axis=1)

    figures = measure_file(doubled(0.5), doubled(0.0), learned, timesteps=8)
    assert figures.rms[:6].max() == 0  # the default solver draws no noise
    assert figures.rms[6:-1].min() > 0


def test_excess_is_at_most_one_exactly_within_budget() -> None:
    t, relative, batch = np.array([9.0, 1.0]), np.array([1e-3, 2e-3]), np.array([1, 2])
    good = NextState(t, relative, np.array([1e-3, 1e-4]), np.array([4e-3, 1e-3]), batch, 0.1, 40.0)
    exact = Budget(2e-3, 0.1, 40.0, 1e-3, 4e-3)
    assert (good.failures(exact), good.excess(exact)) == ([], pytest.approx(1))
    for field, tighter in (
        ("prediction_relative_l2", 1e-3),
        ("final_max_abs", 0.05),
        ("final_psnr_db", 46.0206),
        ("next_state_rms", 5e-4),
        ("next_state_max", 2e-3),
    ):
        over = replace(exact, **{field: tighter})
        assert len(good.failures(over)) == 1, field
        assert good.excess(over) == pytest.approx(2, rel=1e-4), field
    assert good.excess(Budget()) == 0


def test_a_failure_says_how_much_where_and_at_which_batch() -> None:
    figures = measure_file(shifted(0.1), truth, manifest(), timesteps=6)
    (text,) = figures.failures(Budget(next_state_rms=1e-3))
    row = int(figures.rms.argmax())
    assert text.startswith(f"RMS error of the next state {figures.rms[row]:.2g} at t = {figures.t[row]:g}, batch ")


def test_budgets_grow_with_what_a_precision_rounds_away() -> None:
    halves = [budget_for(name) for name in ("fp16", "bf16", "int8")]
    for smaller, larger in pairwise(halves):
        assert smaller.next_state_rms < larger.next_state_rms
        assert smaller.next_state_max < larger.next_state_max
        assert smaller.final_psnr_db > larger.final_psnr_db
    assert budget_for("fp16").next_state_rms <= 1 / (255 * np.sqrt(12))  # no more than 8-bit pixels round themselves


def test_the_mean_error_ranks_by_the_size_of_the_error() -> None:
    steps = list(teacher_forced(truth, manifest(), default_plan(manifest()), 2, {}))
    small, large = (mean_error(steps, shifted(by), 2.0) for by in (0.01, 0.02))
    assert large == pytest.approx(2 * small, rel=1e-2)


@pytest.mark.parametrize("batches", [(), (0,), (2, -1)])
def test_batches_must_be_sizes(batches: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="batches: got"):
        measure_file(truth, truth, manifest(), batches=batches)


def test_every_row_is_told_to_the_progress_bar() -> None:
    calls = []
    figures = measure_file(truth, truth, manifest(), timesteps=10, advance=lambda: calls.append(1))
    assert len(calls) == len(figures.t) == 6 + 10


def test_the_plot_is_written_where_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    measured = {name: measure_file(shifted(by), truth, manifest()) for name, by in (("fp16", 1e-3), ("int8", 1e-2))}
    plot(measured, {name: budget_for(name) for name in measured}, tmp_path / "export_parity.png", "toy")
    assert (tmp_path / "export_parity.png").stat().st_size > 10_000


def test_it_is_measured_without_torch_and_onnx() -> None:
    import subprocess

    code = "import sys, ddpm_deploy.parity.next_state; assert not {'torch', 'onnx'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
