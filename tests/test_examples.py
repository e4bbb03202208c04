"""The examples run, draw something, and compute what they claim."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_deploy.noise import initial_noise
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

ROOT = Path(__file__).parent.parent


@pytest.fixture
def example(monkeypatch):
    """Import an example by name."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices are slower on several threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def smooth_network(x, t):
    """Any smooth function does as a predicted noise."""
    return 0.9 * np.sin(x + t / 700) + 0.1 * x


@pytest.mark.parametrize("words", [("--preset", "shapes"), ("--steps", "100")])
def test_a_bundle_to_judge_takes_no_words_about_training(example, monkeypatch, capsys, words):
    with pytest.raises(SystemExit):
        run(example("shapes_demo"), monkeypatch, "--bundle", "shapes", *words)
    assert f"{words[0]}: is of the training" in capsys.readouterr().err


# -- ddpm_by_hand -----------------------------------------------------------------------------------------------------


def test_the_tables_by_hand_are_those_of_the_linear_schedule(example):
    hand, schedule = example("ddpm_by_hand"), NoiseSchedule.linear()
    np.testing.assert_allclose(hand.betas, schedule.betas, rtol=1e-9)
    np.testing.assert_allclose(hand.abar, schedule.alphas_cumprod, rtol=1e-12)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_algorithm_2_by_hand_equals_the_ddpm_plan(example, variance):
    hand, rng = example("ddpm_by_hand"), np.random.default_rng(0)
    x_T, noise = rng.standard_normal((3, 5)), rng.standard_normal((hand.T, 3, 5))
    by_hand = hand.sample(smooth_network, x_T, lambda t: noise[t], variance=variance)
    plan = make_plan("ddpm", NoiseSchedule.linear(), variance=variance)
    by_plan = plan.run(lambda x, t: smooth_network(x, t[0]), x_T, noise[::-1])  # row 0 is t = T-1
    assert np.abs(by_hand).max() > 0.1
    np.testing.assert_allclose(by_hand, by_plan, rtol=0, atol=1e-11)


def test_algorithm_1_by_hand_has_no_loss_for_the_exact_noise_of_a_single_picture(example):
    hand = example("ddpm_by_hand")
    picture = torch.linspace(-1, 1, 7)

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            abar = torch.tensor(hand.abar, dtype=torch.float32)[t.long(), None]
            return self.factor * (x - abar.sqrt() * picture) / (1 - abar).sqrt()

    torch.manual_seed(0)
    assert hand.train(Exact(), picture.repeat(9, 1), steps=1)[0] < 1e-6
    assert hand.train(Exact(), -picture.repeat(9, 1), steps=1)[0] > 0.1


def test_ddpm_by_hand_learns_and_draws_a_picture(example, monkeypatch, tmp_path, capsys):
    hand, losses = example("ddpm_by_hand"), []
    train = hand.train
    monkeypatch.setattr(hand, "train", lambda *args: losses.extend(train(*args)) or losses)
    run(hand, monkeypatch, "--steps", 120, "--count", 10, "--out", tmp_path / "digits.png")
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    pixels = np.asarray(Image.open(tmp_path / "digits.png"))
    assert pixels.shape[1] > 9 * pixels.shape[0] > 500
    assert pixels.std() > 20
    assert f"wrote {tmp_path / 'digits.png'}" in capsys.readouterr().out


# -- points_2d --------------------------------------------------------------------------------------------------------


def test_points_2d_trains_and_draws_a_picture(example, monkeypatch, tmp_path):
    run(example("points_2d"), monkeypatch, "--steps", 40, "--count", 100, "--out", tmp_path / "points.png")
    pixels = np.asarray(Image.open(tmp_path / "points.png").convert("RGB"))
    assert pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_points_2d_brings_noise_to_the_spiral_when_the_network_is_perfect(example):
    points, closed_form = example("points_2d"), example("closed_form")
    schedule, data = NoiseSchedule.linear(100, 1e-3, 0.2), points.spiral(400).astype(np.float64)
    exact = closed_form.mixture_denoiser(schedule, np.full(400, 1 / 400), data, 0.0)

    def denoise(x, t):
        return schedule.from_x0(x, exact(x, t), t, points.PREDICTION).astype(x.dtype)

    for solver, steps in (("ddpm", 100), ("unipc", 10)):
        ways = points.paths(denoise, schedule, solver, steps, count=60)
        assert ways.shape == (steps + 1, 60, 2)
        np.testing.assert_array_equal(ways[0], initial_noise(0, range(60), (2,)))
        away = np.linalg.norm(ways[-1][:, None] - data, axis=2).min(axis=1)
        assert away.mean() < 0.05
        assert ways[-1].std(axis=0).min() > 0.5


def test_the_spiral_has_about_unit_variance(example):
    spread = example("points_2d").spiral(5000).std(axis=0)
    assert spread == pytest.approx([0.95, 0.95], abs=0.2)
