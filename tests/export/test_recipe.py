"""Recipes and flags: they say the same things, and every shipped recipe exports."""

from __future__ import annotations

import contextlib
import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ddpm_deploy.export.__main__ import main
from ddpm_deploy.export.flags import GROUPS, build_parser, recipe_values
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.recipe import (
    DefaultPlan,
    EncoderSource,
    ModelText,
    effective,
    make_recipe,
    parse_assignment,
    read_recipe,
    to_toml,
)
from ddpm_deploy.export.sources.base import Settings

RECIPES = Path(__file__).parents[2] / "export" / "recipes"

EXAMPLES = {
    "--target": "openvino",
    "--precision": "fp32,int8",
    "--graph": "denoiser",
    "--opset": "20",
    "--sample-shape": "3,32,32",
    "--schedule": "linear:T=100,beta_start=1e-4,beta_end=0.02",
    "--prediction": "v",
    "--variance": "large",
    "--clip": "-1,1",
    "--factory-options": '{"width": 8}',
    "--weights": "weights.safetensors",
    "--step": "3",
    "--x-name": "sample",
    "--t-name": "timestep",
    "--output-name": "out",
    "--name": "toy",
    "--model-version": "2",
    "--licence": "MIT",
    "--solver": "ddim",
    "--steps": "7",
    "--spacing": "linspace",
    "--batches": "1,3",
    "--max-relative-error": "1e-4",
    "--parity-timesteps": "9",
    "--calibration-states": "12",
}


@pytest.mark.parametrize("flag", [flag for flags in GROUPS.values() for flag in flags], ids=lambda flag: flag.name)
def test_every_flag_sets_what_the_recipe_calls_by_its_key(flag: Any) -> None:
    arguments = [flag.name] if flag.read is None else [f"{flag.name}={EXAMPLES[flag.name]}"]
    values = recipe_values(vars(build_parser().parse_args(arguments)))
    section, name = flag.key.split(".")
    assert list(values) == [section]
    assert list(values[section]) == [name]
    if name == "unroll":  # of no use to a CPU
        values[section]["targets"] = ["tensorrt"]
    recipe, default = make_recipe(values), make_recipe({})
    assert getattr(getattr(recipe, section), name) != getattr(getattr(default, section), name)


def test_printed_recipe_is_a_recipe_of_the_same_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"{name}={value}" for name, value in EXAMPLES.items()]
    assert main(["runs/toy", *arguments, "--set", "export.budgets.int8.next_state_rms=0.5", "--print-recipe"]) == 0
    (tmp_path / "printed.toml").write_text(printed := capsys.readouterr().out)
    assert main(["--recipe", str(tmp_path / "printed.toml"), "--print-recipe"]) == 0
    assert capsys.readouterr().out == printed
    recipe = make_recipe(read_recipe(tmp_path / "printed.toml"))
    assert recipe.path == "runs/toy"
    assert recipe.export.budgets == {"int8": {"next_state_rms": 0.5}}
    assert recipe.source.sample_shape == (3, 32, 32)


def test_a_flag_overrules_the_file_and_set_overrules_the_flag(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('path = "a"\n[plan]\nsteps = 5\nsolver = "ddim"\n')
    arguments = ["b", f"--recipe={tmp_path / 'r.toml'}", "--steps=6", "--set", "plan.steps=7"]
    given = vars(build_parser().parse_args(arguments))
    values = recipe_values(given)
    assert values == {"path": "b", "plan": {"steps": 7, "solver": "ddim"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b=1", ("a.b", 1)), ("a.b = [1, 2]", ("a.b", [1, 2])), ("a=word", ("a", "word")), ('a="1"', ("a", "1"))],
)
def test_assignments_hold_toml_values_or_bare_words(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[export]\nprecisions = 3", "export: precisions: got 3"),
        ('[export]\nprecisions = ["fp8"]', "precision: got 'fp8', expected some of fp32"),
        ('[export]\ntargets = ["onnxruntime-cpu"]\nprecisions = ["fp16"]', "fp16: is not written for onnxruntime-cpu"),
        ('[export]\ntargets = ["openvino"]\ngraphs = ["step"]', "step: is not written for openvino"),
        ("[export]\nbatches = [0]", "batches: got"),
        ("[export]\nspeed = 1", "got unknown key 'speed'"),
        ("[export.budgets.int8]\nwarmth = 1.0", "budgets.int8: got 'warmth'"),
        ("[export.budgets.fp16]\nnext_state_rms = -1.0", "budgets.fp16.next_state_rms: got -1.0"),
        ("[exports]", "got 'exports', expected some of path"),
        ("export = 1", "export: got 1, expected a section"),
        ('[source]\nschedule = {kind = "square"}', "schedule: kind: got 'square'"),
        ("[source]\nschedule = {kind = []}", "schedule: kind: got []"),
        ('[source]\nprediction = "noise"', "prediction: got 'noise'"),
        ('[source]\nconditions = [{name = "y", dtype = "int64", shape = 3}]', "conditions: y: shape: got 3"),
        ('[source]\nconditions = [{name = "y", dtype = "int64", shape = [-1]}]', "conditions: y: shape: got [-1]"),
        ('[source]\nconditions = [{name = "y", dtype = "text"}]', "conditions: got 'y' of dtype 'text'"),
        ('[source]\nconditions = [{name = "y", dtype = "int64", classes = 3}]', "conditions: y: classes: got 3"),
        ("path = 3", "path: got 3"),
        ("path = ", "is no TOML"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "r.toml").write_text(text)
    assert main(["--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


KEYS = {
    "source": [member.name for member in fields(Settings)],
    "model": [member.name for member in fields(ModelText)],
    "plan": [member.name for member in fields(DefaultPlan)],
    "export": [member.name for member in fields(Options)],
    "encoder": [member.name for member in fields(EncoderSource)],
}
WORDS = st.sampled_from(["", "eps", "linear", "none", "fp16", "denoiser", "x", "tensorrt", "int64"])
NAMES = st.sampled_from(["kind", "T", "scale", "offset", "units", "name", "shape", "dtype", "classes", "fp16", "betas"])
VALUES = st.recursive(
    st.booleans() | st.integers(-3, 40) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=6,
)


@given(st.sampled_from(sorted(KEYS)), st.data())
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_value_of_any_key_gives_a_recipe_or_a_named_refusal(section: str, data: st.DataObject) -> None:
    name, value = data.draw(st.sampled_from(KEYS[section])), data.draw(VALUES)
    needed = {"path": "a:b", "condition": "c", "inputs": []} if section == "encoder" else {}
    with contextlib.suppress(ValueError):
        assert make_recipe({section: {**needed, name: value}}).path is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("inputs=[{shape=[2]}]", "encoder: inputs: got {'shape': [2]}, expected name, shape, dtype"),
        ("path='builtins:dict'", "encoder: builtins:dict: got a dict, expected an nn.Module"),
    ],
)
def test_a_bad_encoder_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    recipe, out = str(RECIPES / "diffusion_policy.toml"), str(tmp_path / "b")
    assert main(["--recipe", recipe, "--out", out, "--set", f"encoder.{change}"]) == 2
    assert message in capsys.readouterr().err


def test_another_solver_leaves_the_options_of_the_sources_own_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    nn = pytest.importorskip("torch.nn")
    from ddpm_deploy.bundle import Defaults, OutputAffine
    from ddpm_deploy.export import api
    from ddpm_deploy.export.sources import Source
    from ddpm_deploy.schedule import NoiseSchedule

    own = Defaults("unipc", 5, "trailing", {"order": 2})
    source = Source((2,), NoiseSchedule.linear(9), "eps", "small", None, OutputAffine((1.0,), (0.0,), "m"), (), own,
                    "toy", {}, network=nn.Identity())  # fmt: skip
    monkeypatch.setattr(api, "open_source", lambda path, settings: source)
    monkeypatch.setattr(api, "export_source", lambda source, out, **given: given["defaults"])

    def defaults(**plan: Any) -> Any:
        return api.export_recipe(make_recipe({"path": "toy", "plan": plan}), "unused")

    assert defaults(solver="ddim") == Defaults("ddim", 5, "trailing", {})
    assert defaults(solver="ddim", options={"eta": 1.0}).options == {"eta": 1.0}
    assert defaults(solver="unipc", steps=3) == Defaults("unipc", 3, "trailing", {"order": 2})


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "--out", "b", "--set", "steps"]])
def test_what_is_missing_is_said_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_shipped_recipes_are_read_and_name_no_unknown_key(name: str) -> None:
    values = read_recipe(RECIPES / f"{name}.toml")
    recipe = make_recipe(values)
    assert recipe.model.name is not None
    assert tomllib.loads(to_toml(effective(values)))["export"]["targets"] == list(recipe.export.targets)


# -- every shipped recipe at toy size ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_diffusers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the block layout of the public models, but few and narrow layers."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusers") / "toy"
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return folder


TOY = ["--parity-timesteps", "8", "--calibration-states", "8", "--batches", "1,3", "--quiet", "--json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "celebahq256", "digits"])
def test_recipe_of_a_picture_model_exports_at_toy_size(
    name: str, toy_diffusers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPES / f"{name}.toml"
    assert main([str(toy_diffusers), "--recipe", str(recipe), "--out", str(tmp_path / "b"), "--steps", "4", *TOY]) == 0
    files = {file["path"]: file for file in json.loads(capsys.readouterr().out)["files"]}
    asked = make_recipe(read_recipe(recipe)).export.files()
    assert {file.path for file in asked} <= set(files)
    assert all(files[file.path]["parity"] and not files[file.path]["over_budget"] for file in asked)


@pytest.mark.slow
def test_recipe_of_the_policy_exports_with_its_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "source.factory_options.channels=[32, 64, 64]"]
    assert main(["--recipe", str(RECIPES / "diffusion_policy.toml"), "--out", str(tmp_path / "b"), *TOY, *small]) == 0
    files = {file["path"]: file for file in json.loads(capsys.readouterr().out)["files"]}
    assert files["encoder.fp32.onnx"]["parity"]["relative_l2"] < 1e-5
    from ddpm_deploy import Sampler

    with Sampler.load(tmp_path / "b") as sampler:
        import numpy as np

        actions = sampler.to_user(sampler.sample(1, condition={"observation": np.zeros((1, 2, 20), np.float32)}))
        assert actions.shape == (1, 7, 16)
        assert abs(actions[:, 6]).max() <= 0.08 + 1e-6  # the last channel is a gripper, in metres
