"""Timesteps that are chosen by a model's own trajectories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Defaults, default_bundle, read_bundle
from ddpm_deploy.grid import Grid
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.spacing import SPACINGS
from ddpm_deploy.tune import main
from ddpm_deploy.tuning.defaults import write_defaults
from ddpm_deploy.tuning.plan import SEED, Teacher, tune_plan
from ddpm_deploy.tuning.timesteps import best_path, fine_timesteps, refine, step_errors

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Sampler.load() as opened:
        yield opened


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_best_path_is_the_best_of_all_paths(steps: int) -> None:
    costs = np.triu(RNG.random((6, 7)), 1)
    costs[np.tril_indices(6)] = np.inf

    def total(path: tuple[int, ...]) -> float:
        return sum(costs[a, b] for a, b in zip(path, (*path[1:], 6), strict=True))

    every = [(0, *rest) for rest in combinations(range(1, 6), steps - 1)]
    assert best_path(costs, steps) == list(min(every, key=total))


def test_more_steps_than_points_are_refused() -> None:
    costs = np.where(np.triu(np.ones((3, 4)), 1) > 0, 1.0, np.inf)
    assert best_path(costs, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="got 4, expected at most the 3 points"):
        best_path(costs, 4)


def test_a_single_step_along_the_grid_has_no_error_and_a_straight_trajectory_has_none_at_all() -> None:
    """Where the predicted clean image never changes, the solver of first order is exact."""
    grid = Grid.of(NoiseSchedule.linear(50), [49, 30, 12, 3])
    x0, x = RNG.standard_normal((2, 5, 3, 2))
    states = [a * x0 + s * x for a, s in zip(grid.alpha, grid.sigma, strict=True)]
    errors = step_errors(grid, states, [x0] * 4)
    assert np.all(errors[np.triu_indices(4, 1, 5)] < 1e-25)
    assert np.isinf(errors[np.tril_indices(4)]).all()
    bent = step_errors(grid, states, [x0, x0 + 1, x0, x0])
    assert bent[1, 2] == pytest.approx((grid.alpha[2] - grid.sigma[2] / grid.sigma[1] * grid.alpha[1]) ** 2)


def test_refining_walks_to_the_least_error_and_keeps_the_way_down() -> None:
    goal = [0, 13, 20, 41]
    found, error = refine(
        [0, 1, 2, 3], 50, lambda path: float(sum(abs(a - b) for a, b in zip(path, goal, strict=True)))
    )
    assert (found, error) == (goal, 0)


def test_the_fine_grid_goes_from_the_noisiest_to_the_cleanest_in_whole_steps() -> None:
    t = fine_timesteps(NoiseSchedule.cosine(1000))
    assert (t[0], t[-1]) == (999, 0)
    assert np.all(np.diff(t) <= -1)
    assert 90 < len(t) < 130
    assert fine_timesteps(NoiseSchedule.linear(5)).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(("solver", "nfe"), [("unipc", 5), ("dpmpp_2m", 6)])
def test_the_tuned_plan_is_nearer_to_the_fine_trajectories_of_other_noise_than_every_spacing(sampler, solver, nfe):
    found = tune_plan(sampler, nfe, solver, samples=32)
    manifest = sampler.manifest
    x_T = initial_noise(SEED + 1, range(64), manifest.sample_shape)
    fine = sampler.sample(x_T=x_T, solver="dpmpp_2m", steps=100, spacing="logsnr")

    def distance(plan: Plan) -> float:
        return float(np.sqrt(np.mean((sampler.sample(x_T=x_T, plan=plan) - fine) ** 2)))

    ours = distance(found.plan)
    spaced = [distance(sampler.plan(solver, nfe, spacing)) for spacing in
              ("leading", "trailing", "linspace", "quadratic", "logsnr", "karras")]  # fmt: skip
    assert ours < 0.8 * min(spaced)
    assert found.plan == make_plan(solver, manifest.schedule, timesteps=found.timesteps, prediction="eps", clip=(-1, 1))
    assert found.errors["tuned"] <= found.errors["path of least cost"] < found.errors[found.best_spacing]


def test_heun_has_its_odd_number_of_evaluations(sampler):
    found = tune_plan(sampler, 3, "heun", samples=4)
    assert (found.plan.nfe, len(found.timesteps)) == (3, 2)


def test_a_spacing_that_nothing_comes_near_is_kept_and_no_plan_is_tried_twice(sampler, bundle, monkeypatch, capsys):
    spaced, tried = sampler.plan("ddim", 3, "karras"), []

    def distance(teacher: Teacher, plan: Plan) -> float:
        tried.append(tuple(plan.t))
        return 1.0 + float(np.abs(plan.t - spaced.t).max())

    monkeypatch.setattr(Teacher, "distance", distance)
    found = tune_plan(sampler, 3, "ddim", samples=2)
    assert (found.spacing, found.plan, found.errors["karras"]) == ("karras", spaced, 1)
    assert found.errors["tuned"] > 1
    again = len(tried) - len(set(tried))
    assert again <= len(SPACINGS), "only a spacing that lies on the grid may be tried once more"
    words = ["--plan", "--nfe", "3", "--solver", "ddim", "--samples", "2", "--write-default"]
    assert main([str(bundle), *words]) == 0
    assert "The search came no nearer than karras: these are its timesteps." in capsys.readouterr().out
    assert read_bundle(bundle).manifest.defaults.timesteps == tuple(spaced.t)


def test_the_models_of_the_package_keep_their_defaults(capsys):
    assert main(["digits", "--plan", "--nfe", "3", "--write-default"]) == 2
    assert "is a model of this package; copy the folder" in capsys.readouterr().err


def test_more_prompts_than_samples_are_refused(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\na white cross\n")
    words = ["--plan", "--nfe", "2", "--samples", "2", "--prompts", str(tmp_path / "prompts.txt")]
    assert main(["shapes", *words]) == 2
    assert "holds 3 texts, but --samples is 2; make it at least 3" in capsys.readouterr().err


def test_a_model_that_reads_text_is_tuned_on_prompts_and_under_guidance() -> None:
    with Sampler.load("shapes", threads=1) as shapes:
        with pytest.raises(ValueError, match="prompt: the model draws by text; give some prompts"):
            tune_plan(shapes, 2, samples=2)
        found = tune_plan(shapes, 2, samples=2, guidance=4.0, condition={"prompt": ["a red circle", "a blue square"]})
        assert found.errors["tuned"] <= found.errors[found.best_spacing]


@pytest.mark.parametrize(
    ("nfe", "solver", "message"),
    [
        (4, "heun", "takes an odd number of evaluations, got 4; give 3 or 5"),
        (4, "ddpm", "'ddpm' draws noise"),
        (0, "ddim", "nfe: got 0, expected 1 to"),
        (900, "ddim", "nfe: got 900, expected 1 to"),
    ],
)
def test_what_cannot_be_tuned_is_refused(sampler, nfe, solver, message):
    with pytest.raises(ValueError, match=message):
        tune_plan(sampler, nfe, solver, samples=2)


# -- defaults of a bundle ---------------------------------------------------------------------------------------------


def test_new_defaults_reach_the_sampler_its_one_file_graph_and_the_metadata(bundle):
    import onnxruntime

    from ddpm_deploy.bundle import read_onnx_manifest

    defaults = Defaults("dpmpp_2m", 3, "leading", {}, (999.0, 500.0, 60.5))
    written = write_defaults(read_bundle(bundle), defaults)
    assert read_bundle(bundle).manifest.defaults == written.manifest.defaults == defaults
    graph = bundle / "sampler.fp32.onnxruntime-cpu.onnx"
    assert read_onnx_manifest(graph).defaults == defaults
    x_T, labels = initial_noise(0, range(4), (1, 8, 8)), np.arange(4)
    (alone,) = onnxruntime.InferenceSession(graph).run(None, {"x_T": x_T, "labels": labels})
    with Sampler.load(bundle) as sampler:
        assert sampler.plan().t.tolist() == [999, 500, 60.5]
        assert sampler.plan("dpmpp_2m").t.tolist() == sampler.plan("dpmpp_2m", 3, "leading").t.tolist()
        assert sampler.sample(x_T=x_T, condition={"labels": labels}) == pytest.approx(alone, abs=3e-5)


def test_a_default_that_draws_noise_leaves_the_noise_of_the_one_file_graph_to_be_given(bundle):
    import onnxruntime

    write_defaults(read_bundle(bundle), Defaults("ddpm", 5, "linspace"))
    session = onnxruntime.InferenceSession(bundle / "sampler.fp32.onnxruntime-cpu.onnx")
    given = {"x_T": initial_noise(0, range(2), (1, 8, 8)), "labels": np.arange(2)}
    with pytest.raises(ValueError, match="noise"):
        session.run(None, given)
    (drawn,) = session.run(None, {**given, "noise": np.zeros((5, 2, 1, 8, 8), np.float32)})
    assert np.isfinite(drawn).all()
    write_defaults(read_bundle(bundle), Defaults("ddim", 5, "linspace"))
    assert onnxruntime.InferenceSession(bundle / "sampler.fp32.onnxruntime-cpu.onnx").run(None, given)


def test_defaults_that_make_no_plan_leave_the_bundle_alone(bundle):
    before = read_bundle(bundle).digest
    with pytest.raises(ValueError, match="solver: got 'magic'"):
        write_defaults(read_bundle(bundle), Defaults("magic", 5, "linspace"))
    assert read_bundle(bundle).digest == before


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_plan_that_sample_takes_and_the_bundles_default(bundle, tmp_path, capsys):
    words = ["--plan", "--nfe", "3", "--samples", "4", "--out", str(tmp_path / "plan.json"), "--write-default"]
    assert main([str(bundle), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["timesteps"]) == 3
    assert Plan.load(tmp_path / "plan.json").t.tolist() == found["timesteps"]
    assert list(read_bundle(bundle).manifest.defaults.timesteps) == found["timesteps"]
    assert main([str(bundle), "--plan", "--nfe", "3", "--samples", "4"]) == 0
    assert "unipc, 3 evaluations, at t = 999" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan"], "--nfe"),
        (
            ["--plan", "--nfe", "4", "--prompts", "/dev/null"],
            "--prompts: /dev/null: holds no text, expected one a line",
        ),
        (["--plan", "--nfe", "4", "--out", "plan.txt"], "--out: got plan.txt, expected a name ending in .json or .npz"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, capsys):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
