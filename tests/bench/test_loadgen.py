"""MLPerf's load generator drives a sampler: what it measures of one of known speed, what it is told, what it leaves."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bench.loadgen import (
    DETAIL,
    MARK,
    MIN_QUERIES,
    NOT_OFFICIAL,
    Answers,
    read_log,
    results_of,
    run_loadgen,
)
from ddpm_deploy.errors import BackendUnavailable

KEYS = {"scenario", "figure", "value", "unit", "n", "valid", "label"}
BATCH_S = 0.005  # of the sampler of known speed, whatever the batch


class Steady:
    """As much of a sampler as LoadGen needs; it takes its time and fails when it is told to."""

    def __init__(self, fails_after: int = 10**9) -> None:
        self.manifest = SimpleNamespace(sample_shape=(1, 2, 2))
        self.calls: list[int] = []
        self.fails_after = fails_after

    def plan(self, solver: str, steps: int) -> str:
        return f"{solver} {steps}"

    def sample(self, *, x_T: np.ndarray, plan: str, batch_size: int) -> np.ndarray:
        assert plan == "unipc 12"
        if len(self.calls) >= self.fails_after:
            raise RuntimeError("the network is gone")
        self.calls.append(len(x_T))
        time.sleep(BATCH_S * -(-len(x_T) // batch_size))
        return x_T


@pytest.fixture(scope="module")
def installed() -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")


@pytest.mark.usefixtures("installed")
def test_single_stream_gives_the_latency_of_one_picture(tmp_path: Path) -> None:
    steady = Steady()
    results = run_loadgen(steady, "SingleStream", tmp_path / "new" / "logs", min_duration_s=0.5)
    assert [result["figure"] for result in results] == ["50th percentile latency", "90th percentile latency"]
    assert all(result.keys() == KEYS for result in results)
    middle, high = (result["value"] for result in results)
    assert 1e3 * BATCH_S <= middle <= high < 20e3 * BATCH_S
    assert results[0]["unit"] == "ms"
    assert results[0]["n"] == len(steady.calls) - 4 >= MIN_QUERIES  # four calls to warm up
    assert all(result["valid"] and NOT_OFFICIAL in result["label"] for result in results)
    assert "Scenario : SingleStream" in (tmp_path / "new" / "logs" / "mlperf_log_summary.txt").read_text()


@pytest.mark.usefixtures("installed")
def test_offline_gives_the_throughput_of_full_batches(tmp_path: Path) -> None:
    steady = Steady()
    (result,) = run_loadgen(steady, "Offline", tmp_path, batch_size=8, min_duration_s=0.5)
    assert (result["unit"], result["scenario"]) == ("samples/s", "Offline")
    assert 8 / BATCH_S / 5 < result["value"] <= 8 / BATCH_S
    assert result["n"] == steady.calls[-1] > 100  # all in one query
    assert len(steady.calls) == 5
    assert result["valid"]
    assert NOT_OFFICIAL in result["label"]


@pytest.mark.usefixtures("installed")
def test_figures_are_those_of_loadgens_own_summary(tmp_path: Path) -> None:
    with Sampler.load(threads=1) as sampler:
        results = run_loadgen(sampler, "SingleStream", tmp_path, steps=2, min_duration_s=0.2)
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    for result in results:
        percentile = result["figure"][:2]
        assert f"{percentile}.00 percentile latency (ns)   : {round(1e6 * result['value'])}" in summary


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_error_of_the_sampler_is_raised_and_ends_the_test(scenario: str, tmp_path: Path) -> None:
    steady = Steady(fails_after=4)
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="the network is gone"):
        run_loadgen(steady, scenario, tmp_path, min_duration_s=0.3)
    assert time.perf_counter() - began < 20


@pytest.mark.usefixtures("installed")
def test_too_few_queries_for_a_percentile_are_called_invalid(tmp_path: Path) -> None:
    results = run_loadgen(Steady(), "SingleStream", tmp_path, min_duration_s=0.05, min_queries=2)
    assert results[0]["n"] < MIN_QUERIES
    assert not results[0]["valid"]
    assert "INVALID" in results[0]["label"]


@pytest.mark.usefixtures("installed")
def test_settings_of_another_test_in_the_folder_at_work_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audit.config").write_text("*.*.mode = 1\n*.SingleStream.min_query_count = 5000\n")
    monkeypatch.chdir(tmp_path)
    run_loadgen(Steady(), "SingleStream", tmp_path / "logs", min_duration_s=0.05, min_queries=2)
    log = read_log((tmp_path / "logs" / DETAIL).read_text())
    assert log["effective_min_query_count"] == 2
    assert log["effective_test_mode"] == "PerformanceOnly"


def test_answers_are_the_samples_of_their_indices() -> None:
    with Sampler.load(threads=1) as sampler:
        answers = Answers(sampler, sampler.plan("unipc", 4), batch_size=2)
        expected = sampler.sample(6, solver="unipc", steps=4, seed=0)
        np.testing.assert_array_equal(answers.draw([5, 0, 3]), expected[[5, 0, 3]])


class Recorder:
    """What LoadGen is answered."""

    def __init__(self) -> None:
        self.completed: list[Any] = []

    def QuerySampleResponse(self, identity: int, address: int, size: int) -> tuple[int, int, int]:
        return identity, address, size

    def QuerySamplesComplete(self, responses: list[Any]) -> None:
        self.completed += responses


def queries(*indices: int) -> list[Any]:
    return [SimpleNamespace(id=100 + index, index=index) for index in indices]


def test_every_query_is_answered_with_a_picture_of_its_own() -> None:
    recorder = Recorder()
    Answers(Steady(), "unipc 12", 2).issue(recorder, queries(7, 0, 2))
    assert [identity for identity, _, _ in recorder.completed] == [107, 100, 102]
    assert {size for _, _, size in recorder.completed} == {16}
    assert len({address for _, address, _ in recorder.completed}) == 3


def test_queries_after_a_failure_are_answered_with_nothing() -> None:
    recorder, steady = Recorder(), Steady(fails_after=0)
    answers = Answers(steady, "unipc 12")
    answers.issue(recorder, queries(1))
    steady.fails_after = 10
    answers.issue(recorder, queries(2))
    assert recorder.completed == [(101, 0, 0), (102, 0, 0)]
    assert str(answers.failure) == "the network is gone"
    assert steady.calls == []


LOG = {
    "result_validity": "INVALID",
    "result_query_count": 1,
    "effective_samples_per_query": 600,
    "effective_min_duration_ms": 4000,
    "result_samples_per_second": 91.5,
}


def test_verdict_of_loadgen_is_in_the_label() -> None:
    (result,) = results_of("Offline", LOG)
    assert (result["value"], result["n"], result["valid"]) == (91.5, 600, False)
    assert "INVALID for at least 4 s; not an official MLPerf result" in result["label"]
    assert ", valid for" in results_of("Offline", {**LOG, "result_validity": "VALID"})[0]["label"]


def test_log_is_read_line_by_line_and_the_last_value_counts() -> None:
    lines = [MARK + json.dumps({"key": "a", "value": value}) for value in (1, [2, 3])]
    assert read_log("\n".join(["noise", *lines, MARK + '{"key": "b", "value": 1e+07}'])) == {"a": [2, 3], "b": 1e7}


def test_loadgen_that_is_missing_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(BackendUnavailable, match=r"mlcommons-loadgen is not installed; run pip install .*\[bench\]"):
        run_loadgen(Steady(), "Offline", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_scenario_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenario: got 'Server', expected one of SingleStream, Offline"):
        run_loadgen(Steady(), "Server", tmp_path)
