"""`ddpm-deploy bench`: exit codes, one-line errors, JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from reports import small_report

from ddpm_deploy.bench.__main__ import main
from ddpm_deploy.bench.record import PEER, SCHEMA_VERSION, Report, write_report
from ddpm_deploy.bench.report.write import write_all
from ddpm_deploy.cli import main as ddpm_deploy


def saved(folder: Path, report: Report) -> str:
    folder.mkdir()
    write_report(report, folder / "report.json")
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    calm = {"rounds": 100, "cv": 0.02, "drifting": 0.01}
    return {
        "old": saved(tmp_path / "old", small_report(1, **calm)),
        "same": saved(tmp_path / "same", small_report(2, **calm)),
        "slow": saved(tmp_path / "slow", small_report(3, {"onnxruntime fp32": 1.2}, **calm)),
    }


def test_unchanged_run_exits_0(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs["old"], runs["same"] + "/report.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "16 same"


def test_slower_run_exits_1_and_its_rows_stand_first(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm_deploy(["bench", "compare", runs["old"], runs["slow"]]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("worse") for line in lines[:5]] == [True] * 4 + [False]
    assert all("onnxruntime fp32" in line and "+" in line for line in lines[:4])
    assert lines[-1] == "4 worse, 12 same"


def test_tolerance_is_obeyed(runs: dict[str, str]) -> None:
    assert main(["compare", runs["old"], runs["slow"], "--tolerance", "40%"]) == 0


def test_anchor_is_the_peer_that_is_named(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs["old"], runs["same"], "--anchor", "diffusers eager fp32"]) == 0
    assert "torch.compile" not in capsys.readouterr().out
    assert main(["compare", runs["old"], runs["same"], "--anchor", "nobody"]) == 2
    assert "--anchor: got 'nobody', expected a peer of both runs: " in capsys.readouterr().err


def test_json_holds_every_change(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs["old"], runs["slow"], "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["worse"], found["tolerance"], found["warnings"]) == (True, 0.05, [])
    (change,) = (c for c in found["changes"] if c["row"] == "one evaluation, batch 8 / onnxruntime fp32")
    assert change["verdict"] == "worse"
    assert change["ratio"]["low"] < 1.2 < change["ratio"]["high"]


def test_differences_of_the_runs_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = small_report(1)
    other = replace(report, mode="full", settings={"threads": 2, "mode": "quick", "device": "a\x1b[2Jb"})
    main(["compare", saved(tmp_path / "a", report), saved(tmp_path / "b", other)])
    printed = capsys.readouterr().out
    assert "warning: mode: quick before, full now" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "TASK"),
        (["compare", "nowhere", "nowhere"], "nowhere: No such file or directory"),
        (["compare", "", "b"], "empty path"),
        (["compare", "a"], "NEW"),
        (["compare", "a", "b", "--tolerance", "much"], "tolerance: got 'much', expected a percentage such as 5%"),
        (["compare", "a", "b", "--tol", "5%"], "--tol"),
        (["render", "nowhere"], "nowhere/report.json: No such file or directory"),
        (["measure"], "measure"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_report_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"schema_version: got None, expected {SCHEMA_VERSION}" in capsys.readouterr().err


def test_nothing_to_compare_is_bad_input(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = small_report(2)
    alone = replace(report, rows=tuple(row for row in report.rows if row.kind != PEER))
    assert main(["compare", runs["old"], saved(tmp_path / "alone", alone)]) == 2
    assert "no row can be compared" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["render", "--help"]])
def test_help_is_there_for_every_task(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "usage: ddpm-deploy bench" in capsys.readouterr().out


def test_render_writes_the_pages_that_the_run_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_all(small_report(1, rounds=12), tmp_path / "run")
    pages = {path: path.read_bytes() for path in written[1:]}
    for path in pages:
        path.unlink()
    assert main(["render", str(tmp_path / "run")]) == 0
    assert {path: path.read_bytes() for path in pages} == pages
    assert capsys.readouterr().out.splitlines() == [str(path) for path in pages]
