"""Pictures under MLPerf's load generator, whose clock and rules are not ours; not an official MLPerf result.

LoadGen's own logs stay in the folder of the report.
"""

from __future__ import annotations

import time
from typing import NoReturn

from benchmarks.harness import Bench
from benchmarks.subjects import parity_in_words
from ddpm_deploy import Sampler
from ddpm_deploy.bench.loadgen import MIN_QUERIES, run_loadgen
from ddpm_deploy.bench.record import OWN
from ddpm_deploy.errors import BackendUnavailable, BundleError

BACKEND, PRECISION = "onnxruntime", "fp32"
SOLVER, STEPS = "unipc", 12
SECONDS, SECONDS_FULL = 4.0, 30.0
LONGEST_S = 120.0


def test_single_stream(bench: Bench) -> None:
    """One picture after the other: latency."""
    _run(bench, "SingleStream")


def test_offline(bench: Bench) -> None:
    """All pictures at once: throughput."""
    _run(bench, "Offline")


def _run(bench: Bench, scenario: str) -> None:
    if not bench.options.own(BACKEND):
        _leave_out(bench, scenario, f"--backends leaves {BACKEND} out")
    folder = bench.options.report_folder / "loadgen" / scenario
    seconds = SECONDS_FULL if bench.options.full else SECONDS
    try:
        sampler, parity = bench.sampler(BACKEND, PRECISION), parity_in_words(BACKEND, OWN, bench)
        _leave_out_if_slow(bench, scenario, sampler)
        results = run_loadgen(sampler, scenario, folder, solver=SOLVER, steps=STEPS, min_duration_s=seconds)
    except (BackendUnavailable, BundleError, ImportError) as error:
        _leave_out(bench, scenario, " ".join(str(error).split()))
    for result in results:
        bench.note("loadgen", contender=f"{BACKEND} {PRECISION}, {SOLVER}, {STEPS} steps", parity=parity, **result)
    assert all(result["valid"] for result in results), f"LoadGen calls this run invalid; see its logs in {folder}"


def _leave_out_if_slow(bench: Bench, scenario: str, sampler: Sampler) -> None:
    began = time.perf_counter()
    sampler.sample(1, solver=SOLVER, steps=STEPS)
    expected_s = MIN_QUERIES * (time.perf_counter() - began)
    if expected_s > LONGEST_S:
        _leave_out(bench, scenario, f"{MIN_QUERIES} pictures, which LoadGen asks for, would take {expected_s:.0f} s")


def _leave_out(bench: Bench, scenario: str, reason: str) -> NoReturn:
    bench.leave_out(f"loadgen {scenario}", reason, BACKEND if "--backends" not in reason else "")
