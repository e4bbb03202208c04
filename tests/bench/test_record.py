"""A report as a file: what was written is read, and what is none is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import full_report, small_report

from ddpm_deploy.bench.record import SCHEMA_VERSION, Report, read_report, write_report


def plain(value: Any) -> Any:
    """Tuples as JSON has them."""
    return json.loads(json.dumps(value))


@pytest.fixture(scope="module")
def report() -> Report:
    return small_report(rounds=12)


@pytest.fixture
def written(report: Report, tmp_path: Path) -> Path:
    write_report(report, tmp_path / "report.json")
    return tmp_path / "report.json"


def test_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    report = full_report()
    write_report(report, tmp_path / "report.json")
    found = read_report(tmp_path / "report.json")
    assert found.rows == report.rows
    for name in ("model", "machine", "settings", "limits", "sections", "skipped"):
        assert plain(getattr(found, name)) == plain(getattr(report, name))
    assert read_report(tmp_path).rows == report.rows


def test_summary_of_each_row_is_for_other_programs(written: Path, report: Report) -> None:
    document = json.loads(written.read_text())
    assert document["schema_version"] == SCHEMA_VERSION
    for row, stored in zip(report.rows, document["rows"], strict=True):
        assert stored["summary"]["median"]["value"] == pytest.approx(np.median(row.samples_s))
        assert stored["samples_s"] == list(row.samples_s)


def test_figures_that_json_cannot_hold_do_not_lose_a_run(report: Report, tmp_path: Path) -> None:
    section = {"quality": [{"value": math.nan, "baseline": np.float32(0.5), "worst": [math.inf, 1.0]}]}
    write_report(replace(report, sections=section), tmp_path / "report.json")
    (entry,) = read_report(tmp_path).sections["quality"]
    assert entry == {"value": None, "baseline": 0.5, "worst": [None, 1.0]}


def test_two_rows_of_one_id_are_not_written(report: Report, tmp_path: Path) -> None:
    twice = replace(report, rows=(*report.rows, replace(report.rows[3], batch=2)))
    with pytest.raises(ValueError, match="got 'one evaluation, batch 1 / torch fp32' more than once"):
        write_report(twice, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def breaks(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return breaks


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda text: text[: len(text) // 2], "is no report"),
        (lambda text: "[" * 100_000, "is no report"),
        (lambda text: "[]", "schema_version: got None, expected 2; measure again"),
        (broken(lambda d: d.update(schema_version=1)), "schema_version: got 1, expected 2"),
        (broken(lambda d: d.update(rows=None)), "rows: got NoneType, expected a list"),
        (broken(lambda d: d["rows"].append(7)), r"rows\[27\]: got int, expected an object"),
        (broken(lambda d: d["rows"].append(d["rows"][0])), "more than once"),
        (broken(lambda d: d.update(surprise=1)), "unknown key 'surprise'"),
        (broken(lambda d: d.pop("machine")), "'machine' is missing"),
        (broken(lambda d: d["rows"][0].update(kind="ours")), "got kind 'ours'"),
        (broken(lambda d: d["rows"][0].update(samples_s=[])), "0 samples"),
        (broken(lambda d: d["rows"][0].update(samples_s=[1.0, 0.0])), "no.* a positive number|not a positive number"),
        (broken(lambda d: d["rows"][0].update(samples_s=[1.0, math.nan])), "not a positive number"),
        (broken(lambda d: d["rows"][0].update(samples_s="quick")), "samples_s: got 'quick'"),
        (broken(lambda d: d["rows"][0].update(nfe=0)), "not a positive number"),
        (broken(lambda d: d["rows"][0]["parity"].pop("budget")), r"rows\[0\]: parity: 'budget' is missing"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(written: Path, breaks: Callable[[str], str], said: str) -> None:
    written.write_text(breaks(written.read_text()))
    with pytest.raises(ValueError, match=said) as caught:
        read_report(written)
    assert str(written) in str(caught.value)


def test_groups_stand_in_the_order_of_their_measurement(report: Report) -> None:
    assert report.groups == [f"one evaluation, batch {batch}" for batch in (1, 8, 32)]
    assert {row.batch for row in report.group("one evaluation, batch 8")} == {8}


def test_time_of_an_evaluation_is_that_of_a_call_over_its_evaluations() -> None:
    (row,) = (row for row in full_report().rows if row.id == "ddim, 50 evaluations, batch 1 / onnxruntime fp32")
    assert row.per_evaluation_s == pytest.approx(np.median(row.samples_s) / 50)
