"""The `evaluate` command on real runtimes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy.backends import available_backends
from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.evaluate import api
from ddpm_deploy.evaluate.__main__ import main

QUICK = ("--data", "digits", "--bound", "8", "--bound-samples", "20", "--num", "40", "--steps", "4")


@pytest.fixture
def evaluate(capsys):
    def run(*words: object, bundle: object = default_bundle()) -> tuple[int, str, str]:
        code = main([str(bundle), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def measured(out: str) -> dict:
    return json.loads(out)


@pytest.mark.slow
def test_torch_and_onnx_runtime_agree_within_1e_4_bits_per_dim(evaluate):
    words = ("--data", "digits", "--bound", 50, "--bound-samples", 60, "--num", 40, "--json")
    code, out, _ = evaluate(*words, "--beside", "torch")
    assert code == 0
    ours, torch = measured(out)["runtimes"]
    assert ours["bits_per_dim_difference"] is None
    assert 3 < ours["bits_per_dim"]["value"] < 5
    assert abs(torch["bits_per_dim_difference"]["value"]) < 1e-4
    assert abs(torch["bits_per_dim"]["value"] - ours["bits_per_dim"]["value"]) < 1e-4


def test_the_difference_of_another_precision_is_reported_with_its_error(evaluate):
    words = ("--data", "digits", "--bound", 8, "--bound-samples", 6, "--num", 10, "--steps", 2, "--json")
    _, bf16 = measured(evaluate(*words, "--beside", "torch:bf16")[1])["runtimes"]
    assert 1e-6 < abs(bf16["bits_per_dim_difference"]["value"]) < 1
    assert bf16["bits_per_dim_difference"]["standard_error"] > 0


def test_the_report_holds_every_figure_and_its_pictures_and_loads_nothing(evaluate, tmp_path):
    code, out, _ = evaluate(*QUICK, "--draws", 2, "--out", tmp_path)
    assert code == 0
    assert "bits/dim" in out
    page = (tmp_path / "report.html").read_text()
    assert "This is not FID" in page
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "img-src data:" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "![Samples of onnxruntime fp32" in (tmp_path / "report.md").read_text()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    (runtime,) = found["runtimes"]
    bits = runtime["bits_per_dim"]
    assert bits["value"] == pytest.approx(sum(bits["parts"].values()))
    assert len(bits["terms"]) == len(bits["t"]) == 8
    assert bits["standard_error_of_the_noise"] > 0
    assert 0 < found["real"]["frechet"] < 10
    assert 0 < runtime["samples"]["frechet"] < 10
    assert {p.name for p in tmp_path.glob("*.png")} == {"samples.png", "real.png", "nearest.png"}


def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_figures(evaluate, tmp_path, monkeypatch):
    whole = measured(evaluate(*QUICK, "--json")[1])
    rows, real = [], api.measure_bound

    def stopped(sampler, chain, task, name, state, tell):
        def count(done):
            rows.append(done)
            if len(rows) == 5:
                raise KeyboardInterrupt

        state.save = lambda name, arrays, last=False: type(state).save(state, name, arrays, last=True)
        return real(sampler, chain, task, name, state, count)

    with monkeypatch.context() as patch:
        patch.setattr(api, "measure_bound", stopped)
        assert evaluate(*QUICK, "--out", tmp_path)[0] == 130
    terms = np.load(next((tmp_path / "state").glob("bound*.npz")))["terms"]
    assert np.isnan(terms).all(axis=(1, 2)).tolist() == [False] * 5 + [True] * 3
    again = measured(evaluate(*QUICK, "--out", tmp_path, "--json")[1])
    assert again["runtimes"] == whole["runtimes"]
    assert again["real"] == whole["real"]


def test_a_state_of_other_settings_is_refused_and_restart_discards_it(evaluate, tmp_path):
    assert evaluate(*QUICK, "--bound", "none", "--out", tmp_path)[0] == 0
    code, _, err = evaluate(*QUICK, "--bound", "none", "--seed", 1, "--out", tmp_path)
    assert code == 2
    assert "was made with another seed: 0, now 1; give --restart" in err
    assert evaluate(*QUICK, "--bound", "none", "--seed", 1, "--out", tmp_path, "--restart")[0] == 0


def test_a_conditional_model_is_judged_by_the_classes_asked(evaluate, labelled_bundle, labelled_archive, tmp_path):
    words = ("--data", f"npz:{labelled_archive}", "--bound", 4, "--num", 30, "--json", "--out", tmp_path)
    code, out, err = evaluate(*words, bundle=labelled_bundle)
    assert code == 0, err
    found = measured(out)
    assert 0 <= found["runtimes"][0]["samples"]["class_accuracy"] <= 1
    assert found["real"]["class_accuracy"] > 0.9
    assert "of what was asked for is seen by the classifier" in (tmp_path / "report.html").read_text()


def test_every_weight_of_guidance_is_judged_on_the_same_noise(evaluate, tmp_path):
    code, out, err = evaluate(*QUICK, "--bound", "none", "--weights", "0,1,3", "--json", "--out", tmp_path)
    assert code == 0, err
    found = measured(out)
    accuracy = {row["guidance"]: row["class_accuracy"] for row in found["guided"]}
    assert list(accuracy) == [0, 1, 3]
    assert accuracy[0] < 0.5 < accuracy[1]
    assert found["guided"][1] == {"guidance": 1, **found["runtimes"][0]["samples"]}
    assert "guidance 3" in (tmp_path / "report.md").read_text()


def test_weights_that_are_added_go_on_with_what_was_drawn_and_a_weight_of_1_has_no_interval(evaluate, tmp_path):
    words = (*QUICK, "--bound", "none", "--guidance-interval", "100,800", "--json", "--out", tmp_path)
    code, out, err = evaluate(*words, "--weights", "3")
    assert code == 0, err
    code, again, err = evaluate(*words, "--weights", "1,3")
    assert code == 0, err
    (three,) = measured(out)["guided"]
    assert measured(again)["guided"] == [{"guidance": 1, **measured(out)["runtimes"][0]["samples"]}, three]


def test_weights_are_checked_before_runtimes_are_opened(evaluate, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("ddpm_deploy.evaluate.__main__.open_samplers", opened)
    for words, message in (
        (["--weights", "2,inf"], "guidance: got"),
        (["--weights", "1", "--guidance-interval", "100,800"], "guidance_interval: given beside a guidance of 1"),
        (["--weights", "2", "--guidance-interval", "800,100"], "expected (low, high) in timesteps"),
    ):
        code, _, err = evaluate(*QUICK, *words)
        assert code == 2
        assert message in err


def test_a_runtime_that_the_machine_lacks_is_refused_or_left_out_with_a_word(evaluate, tmp_path):
    words = (*QUICK, "--bound", "none", "--json", "--beside", "tensorrt,openvino")
    if "tensorrt" in [name for name, found in available_backends().items() if found.available]:
        pytest.skip("this machine runs TensorRT engines")
    code, _, err = evaluate(*words)
    assert code == 2
    assert "tensorrt" in err
    code, out, err = evaluate(*words, "--skip-unavailable", "--out", tmp_path)
    assert code == 0
    assert "left out: tensorrt fp32: " in err
    (left_out,) = measured(out)["left_out"]
    assert left_out["runtime"] == "tensorrt fp32"
    assert left_out["reason"] in err
    assert "Left out: tensorrt fp32" in (tmp_path / "report.md").read_text()
    assert [each["runtime"] for each in measured(out)["runtimes"]] == ["onnxruntime fp32", "openvino fp32"]


def test_the_shapes_model_is_judged_by_its_prompts(evaluate, monkeypatch):
    """Known scenes are asked for, their attributes are what counts, and the bound reads their captions."""
    monkeypatch.setattr("ddpm_deploy.evaluate.features.SCENE_STEPS", 60)
    words = ("--data", "shapes", "--most", 60, "--bound", 3, "--bound-samples", 4, "--num", 12, "--steps", 5)
    code, out, err = evaluate(*words, "--weights", "0,4", "--json", bundle="shapes")
    assert code == 0, err
    found = measured(out)
    assert "features of a classifier trained here on rendered shapes" in found["about"]["features"]
    assert found["runtimes"][0]["bits_per_dim"]["value"] > 0
    without, with_text = (row["class_accuracy"] for row in found["guided"])
    assert without < with_text
    assert found["real"]["class_accuracy"] > without


def test_the_study_recommends_a_plan_and_writes_it_into_the_bundle(evaluate, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(default_bundle(), bundle)
    words = (*QUICK, "--bound", "none", "--study", "--solvers", "ddim,unipc", "--spacings", "trailing,quadratic")
    code, out, err = evaluate(*words, "--nfes", "3,6", "--write-default", "--json", bundle=bundle)
    assert code == 0, err
    study = measured(out)["study"]
    assert len(study["trials"]) == 9
    assert all(trial["seconds"] > 0 for trial in study["trials"])
    assert study["trials"][0]["apart_error"] == 0
    assert all(trial["apart_error"] > 0 for trial in study["trials"][1:])
    chosen, written = study["recommended"], read_bundle(bundle).manifest.defaults
    assert (written.solver, written.steps) == (chosen["solver"], chosen["steps"])


def test_the_models_of_the_package_keep_their_defaults(evaluate):
    code, _, err = evaluate("--data", "digits", "--study", "--write-default", bundle="digits")
    assert code == 2
    assert "is a model of this package; copy the folder" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beside", "magic"], "--beside: got 'magic'"),
        (["--nfes", "4"], "--nfes: is of the study; give --study too"),
        (["--write-default"], "--write-default: is of the study"),
        (["--study", "--solvers", "magic"], "--solvers: got 'magic'"),
        (["--bound", "1"], "bound: got 1, expected 'full', at least 2 steps"),
        (["--num", "9"], "samples: got 9, expected at least 10"),
        (["--guidance", "inf"], "guidance"),
        (["--plan", "p.json", "--solver", "ddim"], "--plan: given together with"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(evaluate, words, message):
    code, _, err = evaluate("--data", "digits", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_the_command_is_listed(capsys):
    from ddpm_deploy.cli import main as ddpm_deploy

    assert ddpm_deploy(["evaluate", str(Path("nowhere")), "--data", "digits"]) == 2
    assert "no such bundle" in capsys.readouterr().err
