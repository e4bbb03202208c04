"""The reference that contenders are held against before they are timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bench.truth import Truth, follow, noise_for, record_truth
from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.errors import ParityError
from ddpm_deploy.job import example_conditions

BATCH = 2


@pytest.fixture(scope="module")
def truth() -> Truth:
    return record_truth(read_bundle(default_bundle()), BATCH, weights="trained", threads=1)


@pytest.fixture(scope="module")
def sampler():
    with Sampler.load(threads=1) as opened:
        yield opened


def run(sampler: Sampler, **changes: float):
    """The ONNX Runtime backend, with the time moved or the output scaled."""

    def evaluate(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        moved = {**feeds, "t": feeds["t"] + np.float32(changes.get("late", 0))}
        return sampler.backend.run(moved)["prediction"] * np.float32(changes.get("scale", 1))

    return evaluate


def test_onnxruntime_agrees_with_torch_on_every_state(truth: Truth, sampler: Sampler) -> None:
    parity = truth.judge(run(sampler), BATCH, "fp32")
    assert truth.source == "torch fp32"
    assert 0 < parity.figures["relative_l2"] < 1e-5
    assert parity.figures["final_max_abs"] < 1e-4
    assert parity.weights == "trained"
    assert "relative L2" in parity.budget
    assert "final max-abs" in parity.budget


@pytest.mark.parametrize("changes", [{"late": 1.0}, {"scale": 1.0001}, {"scale": float("inf")}])
def test_trained_model_gives_a_small_fault_away(truth: Truth, sampler: Sampler, changes: dict[str, float]) -> None:
    with pytest.raises(ParityError, match="not the same model"):
        truth.judge(run(sampler, **changes), BATCH, "fp32")


def test_samples_of_another_seed_are_refused(truth: Truth, sampler: Sampler) -> None:
    plan = sampler.plan("ddim", 10)
    expected = truth.samples(plan, *noise_for(truth.manifest, BATCH))
    condition = example_conditions(truth.manifest.conditions, BATCH)
    right = sampler.sample(BATCH, plan=plan, seed=0, condition=condition)
    assert truth.judge_samples(right, expected, "fp32").figures["final_max_abs"] < 1e-4
    with pytest.raises(ParityError, match="final error"):
        truth.judge_samples(sampler.sample(BATCH, plan=plan, seed=1, condition=condition), expected, "fp32")
    with pytest.raises(ParityError, match="PSNR"):
        truth.judge_samples(sampler.sample(BATCH, plan=plan, seed=1, condition=condition), expected, "int8")
    with pytest.raises(ParityError, match="not finite"):
        truth.judge_samples(np.full_like(right, np.nan), expected, "fp32")


def test_following_a_plan_gives_a_figure_for_every_row(truth: Truth, sampler: Sampler) -> None:
    plan = sampler.plan("ddpm", 20)
    figures, failures = follow(truth, sampler, plan, "fp32")
    assert failures == []
    assert len(figures["t"]) == len(figures["drift_max_abs"]) == plan.nfe
    assert max(figures["prediction_relative_l2"]) < 1e-5


def test_batch_over_the_recorded_one_is_refused(truth: Truth, sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="batch: got 3, but the reference was recorded for 2"):
        truth.judge(run(sampler), 3, "fp32")


def test_bundle_without_a_torch_network_is_held_against_onnxruntime(tiny_bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from ddpm_deploy.bundle import write_bundle

    whole = read_bundle(tiny_bundle)
    kept = tuple(file for file in whole.manifest.files if file.target == "onnx")
    bare = replace(whole.manifest, network=None, files=tuple(replace(f, size_bytes=0, sha256="") for f in kept))
    write_bundle(tmp_path / "bare", bare, {file.path: whole.open_bytes(file) for file in kept})
    assert record_truth(read_bundle(tmp_path / "bare"), 1, weights="random").source == "onnxruntime fp32"
