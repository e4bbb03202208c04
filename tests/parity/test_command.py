"""The `parity` command on real runtimes."""

import json
from pathlib import Path

import pytest

from ddpm_deploy.parity.__main__ import main


@pytest.fixture
def parity(tiny_bundle: Path, capsys: pytest.CaptureFixture):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(tiny_bundle), *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_float32_runtimes_are_within_budget_over_the_whole_chain(parity, tmp_path: Path) -> None:
    code, out, _ = parity("--backends", "torch,onnxruntime,openvino", "--solver", "ddpm", "--out", tmp_path)
    assert code == 0, out
    assert out.count("within budget") == 2
    assert (tmp_path / "parity.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "parity.json").read_text())
    assert [candidate["name"] for candidate in report["candidates"]] == ["onnxruntime fp32", "openvino fp32"]
    for candidate in report["candidates"]:
        assert len(candidate["prediction_relative_l2"]) == report["nfe"] == 100
        assert 0 < max(candidate["prediction_relative_l2"]) <= 1e-5
        assert 0 < candidate["final_max_abs"] <= 1e-4


def test_over_budget_exits_1_and_says_where(parity) -> None:
    code, out, _ = parity("--backends", "onnxruntime", "--steps", 4, "--max-step-error", 1e-12)
    assert code == 1
    assert "OVER BUDGET: relative error of one step" in out


def test_a_conditional_model_is_measured_on_all_its_classes(labelled_bundle: Path) -> None:
    assert main([str(labelled_bundle), "--backends", "onnxruntime", "--steps", "3"]) == 0


def test_a_model_that_can_be_guided_is_measured_under_guidance(
    guided_bundle: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [str(guided_bundle), "--backends", "onnxruntime", "--steps", "3", "--json"]
    assert main([*words, "--guidance", "3"]) == 0
    guided = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (guided["guidance"], plain["guidance"]) == (3, 1)
    assert guided["candidates"][0]["prediction_relative_l2"] != plain["candidates"][0]["prediction_relative_l2"]


def test_json_alone_is_printed_when_asked(parity) -> None:
    code, out, _ = parity("--backends", "onnxruntime", "--steps", 3, "--json")
    assert code == 0
    assert json.loads(out)["candidates"][0]["failures"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backends", "magic"], "--backends: got 'magic'"),
        (["--backends", "torch"], "torch is the reference"),
        (["--backends", "onnxruntime:int4"], "no parity budget for 'int4'"),
        (["--against", "reference"], "--against reference: the bundle records none"),
        (["--against", "reference", "--steps", "3"], "leave them out"),
        (["--against", "reference", "--num", "4"], "leave them out"),
        (["--against", "reference", "--seed", "0"], "leave them out"),
        (["--num", "0"], "n: got 0"),
        (["--guidance", "2"], "guidance: got a weight, but the model has no condition with a null"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(parity, words: list, message: str) -> None:
    code, _, err = parity(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
