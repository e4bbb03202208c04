"""A sampler under MLPerf's load generator, which asks and takes the times; not an official MLPerf result.

A sample of its library is a sample index of the sampler's own noise, so a query of n samples asks for n pictures. The
times go from the seed to the picture. LoadGen's logs stay in the folder given, and the figures are read from them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy import Sampler
from ddpm_deploy.bench.machine import package_version
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import BATCH_SIZE

PACKAGE = "mlcommons-loadgen"
NOT_OFFICIAL = "not an official MLPerf result"
DETAIL, AUDIT = "mlperf_log_detail.txt", "audit.config"  # the second would override settings; there is none
MARK = ":::MLLOG "  # before each line of the detailed log
LIBRARY = 1024  # samples that LoadGen may ask for
MIN_DURATION_S = 4.0
MIN_QUERIES = 64  # below that LoadGen gives no percentile that it calls valid
HASTE = 1.5  # LoadGen prepares for a sampler so much faster than in its warm-up, or the questions might run out
AFTER_FAILURE_S = 0.01  # so that a sampler that fails does not answer millions of queries

Log = dict[str, Any]
Result = dict[str, Any]

# What is reported of a scenario: name, unit, key of the log, units in one of the log's.
FIGURES: dict[str, tuple[tuple[str, str, str, float], ...]] = {
    "SingleStream": (
        ("50th percentile latency", "ms", "result_50.00_percentile_latency_ns", 1e-6),
        ("90th percentile latency", "ms", "result_90.00_percentile_latency_ns", 1e-6),
    ),
    "Offline": (("throughput", "samples/s", "result_samples_per_second", 1.0),),
}


def run_loadgen(
    sampler: Sampler,
    scenario: str,
    folder: str | os.PathLike[str],
    *,
    solver: str = "unipc",
    steps: int = 12,
    batch_size: int = BATCH_SIZE,
    min_duration_s: float = MIN_DURATION_S,
    min_queries: int = MIN_QUERIES,
) -> list[Result]:
    """Run one scenario in PerformanceOnly mode: each figure with scenario, figure, value, unit, n, valid, label.

    scenario: "SingleStream", one picture after the other, or "Offline", many at once, drawn in batches of `batch_size`.
    folder: for LoadGen's logs. n: pictures. valid: LoadGen's verdict by this duration and count, which are far below
    those of a submission. BackendUnavailable where LoadGen is missing; what the sampler raises is raised.
    """
    if scenario not in FIGURES:
        raise ValueError(f"scenario: got {scenario!r}, expected one of {', '.join(FIGURES)}")
    loadgen, folder = _loadgen(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    answers = Answers(sampler, sampler.plan(solver, steps), batch_size)
    settings = _settings(loadgen, scenario, min_duration_s, min_queries)
    settings.single_stream_expected_latency_ns = int(1e9 * answers.seconds(1) / HASTE)
    settings.offline_expected_qps = HASTE / answers.seconds(batch_size)
    _run(loadgen, answers, settings, folder)
    return results_of(scenario, read_log((folder / DETAIL).read_text(encoding="utf-8")))


@dataclass
class Answers:
    """Draws the pictures that LoadGen asks for. failure: the first error, after which it draws no more."""

    sampler: Sampler
    plan: Plan
    batch_size: int = BATCH_SIZE
    failure: Exception | None = None

    def draw(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """The samples of seed 0 with these indices: (n, *S)."""
        x_T = initial_noise(0, indices, self.sampler.manifest.sample_shape)
        return self.sampler.sample(x_T=x_T, plan=self.plan, batch_size=self.batch_size)

    def seconds(self, n: int) -> float:
        """For one of n pictures that share a batch, the first call apart."""
        self.draw(range(n))
        began = time.perf_counter()
        self.draw(range(n))
        return (time.perf_counter() - began) / n

    def issue(self, loadgen: Any, queries: Sequence[Any]) -> None:
        """Answer all, whatever happens: an error must not travel through LoadGen, which would abort the process."""
        pictures = self._drawn_or_none([query.index for query in queries])
        responses = [
            loadgen.QuerySampleResponse(query.id, 0, 0)
            if pictures is None
            else loadgen.QuerySampleResponse(query.id, pictures[k].ctypes.data, pictures[k].nbytes)
            for k, query in enumerate(queries)
        ]
        loadgen.QuerySamplesComplete(responses)

    def _drawn_or_none(self, indices: Sequence[int]) -> NDArray[np.float32] | None:
        if self.failure is None:
            try:
                return self.draw(indices)
            except Exception as error:
                self.failure = error
        time.sleep(AFTER_FAILURE_S)
        return None


def read_log(text: str) -> Log:
    """The values of the detailed log by their keys; of a key that comes twice, the last."""
    lines = (line.removeprefix(MARK) for line in text.splitlines() if line.startswith(MARK))
    return {entry["key"]: entry["value"] for entry in map(json.loads, lines)}


def results_of(scenario: str, log: Log) -> list[Result]:
    """The figures of one scenario, each with LoadGen's verdict."""
    valid = log["result_validity"] == "VALID"
    verdict = "valid" if valid else "INVALID"
    seconds = log["effective_min_duration_ms"] / 1e3
    label = f"{PACKAGE} {package_version(PACKAGE)}, {verdict} for at least {seconds:g} s; {NOT_OFFICIAL}"
    n = log["result_query_count"] * log["effective_samples_per_query"]
    return [
        {"scenario": scenario, "figure": figure, "value": log[key] * scale, "unit": unit, "n": n}
        | {"valid": valid, "label": label}
        for figure, unit, key, scale in FIGURES[scenario]
    ]


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise BackendUnavailable(f"{PACKAGE} is not installed; run pip install 'ddpm-deploy[bench]'") from error
    return mlperf_loadgen


def _settings(loadgen: Any, scenario: str, min_duration_s: float, min_queries: int) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * min_duration_s)
    settings.min_query_count = min_queries
    return settings


def _run(loadgen: Any, answers: Answers, settings: Any, folder: Path) -> None:
    """Let LoadGen ask until it is satisfied; raise what the sampler raised."""
    sut = loadgen.ConstructSUT(lambda queries: answers.issue(loadgen, queries), lambda: None)
    qsl = loadgen.ConstructQSL(LIBRARY, LIBRARY, lambda indices: None, lambda indices: None)
    try:
        loadgen.StartTestWithLogSettings(sut, qsl, settings, _log_settings(loadgen, folder), str(folder / AUDIT))
    finally:
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
    if answers.failure is not None:
        raise answers.failure


def _log_settings(loadgen: Any, folder: Path) -> Any:
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    return logs
