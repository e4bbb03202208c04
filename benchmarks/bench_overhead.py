"""The sampler's own cost: per step on a network that costs nothing, beside a real one, and its import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Bench
from ddpm_deploy import Sampler
from ddpm_deploy.backends import Backend
from ddpm_deploy.bench.measure import Contender, Effort, interleave
from ddpm_deploy.bench.statistics import Interval, paired_ratio
from ddpm_deploy.bundle import Manifest, default_bundle, read_bundle
from ddpm_deploy.schedule import NoiseSchedule

SHAPE = (3, 32, 32)
STEPS = 100
BROKEN = 4  # times its target: the report tells of less, as it may be a slow machine
NFE = 12
DETERMINISTIC_US, STOCHASTIC_US, IMPORT_MS, LOOP_RATIO = 50, 150, 60, 1.01
OVERHEAD_OF_SMALL = 1.15  # of a network of a millisecond, where the loop's own 40 us a step show
SOLVERS = {
    "ddim": DETERMINISTIC_US,
    "dpmpp_2m": DETERMINISTIC_US,
    "deis": DETERMINISTIC_US,
    "heun": DETERMINISTIC_US,
    "unipc": DETERMINISTIC_US,
    "ddpm": STOCHASTIC_US,
    "dpmpp_2m_sde": STOCHASTIC_US,
}


class Trivial:
    """A backend whose network costs nothing: it gives back its input."""

    name, device, precision, threads, batch_invariant = "trivial", "cpu", "fp32", 1, True
    outputs = (SimpleNamespace(name="prediction"),)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"prediction": feeds["x"]}


class Recording:
    """A backend that keeps what it is fed: how long an evaluation takes may depend on its numbers."""

    loop = None  # a resident one would show no feeds

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.feeds: list[dict[str, np.ndarray]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.feeds.append({name: array.copy() for name, array in feeds.items()})
        return self._backend.run(feeds)


@pytest.fixture(scope="module")
def trivial() -> Sampler:
    digits = read_bundle(default_bundle()).manifest
    members = {**vars(digits), "sample_shape": SHAPE, "schedule": NoiseSchedule.linear(1000)}
    return Sampler(Trivial(), Manifest(**members))  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
def test_step_overhead(benchmark: Any, bench: Bench, trivial: Sampler, solver: str) -> None:
    plan = trivial.plan(solver, STEPS)
    expected = plan.run(lambda x, t: x, trivial.sample(1, plan=trivial.plan("ddim", 1)), np.zeros(1))
    assert np.isfinite(expected).all()
    benchmark.pedantic(lambda: trivial.sample(1, plan=plan, seed=0), rounds=30, warmup_rounds=3)
    per_step_us = benchmark.stats.stats.median / plan.nfe * 1e6
    benchmark.extra_info["per_step_us"] = round(per_step_us, 1)
    what = f"the sampler's own cost of a step, {solver}, batch 1, 3x32x32"
    bench.note("overhead", what=what, value=per_step_us, unit="us", target=SOLVERS[solver])
    assert per_step_us <= BROKEN * SOLVERS[solver]


def test_loop_over_its_evaluations(benchmark: Any, bench: Bench) -> None:
    """A whole sampling beside the bare evaluations that it consists of, in the same rounds."""
    if not bench.options.own("onnxruntime"):
        bench.leave_out("a sampling over its evaluations", "--backends leaves onnxruntime out")
    benchmark.skipped = True  # its figure is a ratio, and stands in the report
    ratio = _loop_ratio(bench)
    target = LOOP_RATIO if bench.model.bundle.manifest.sample_shape[-1] >= 32 else OVERHEAD_OF_SMALL
    what = f"a sampling of {NFE} evaluations over {NFE} bare evaluations, batch 1 [{ratio.low:.3f}, {ratio.high:.3f}]"
    bench.note("overhead", what=what, value=ratio.value, unit="x", target=target)
    assert ratio.low <= BROKEN * target


def _loop_ratio(bench: Bench) -> Interval:
    sampler = bench.sampler("onnxruntime", "fp32")
    plan, run = sampler.plan("unipc", NFE), sampler.backend.run
    recording = Recording(sampler.backend)
    Sampler(recording, sampler.manifest).sample(1, plan=plan)  # type: ignore[arg-type]
    assert len(recording.feeds) == plan.nfe

    def evaluations() -> None:
        for feeds in recording.feeds:
            run(feeds)

    contenders = [Contender("loop", lambda: sampler.sample(1, plan=plan)), Contender("bare", evaluations)]
    seconds = interleave(contenders, Effort(budget_s=20, min_rounds=15)).seconds
    return paired_ratio(seconds["loop"], seconds["bare"])


CODE = """
import sys, time
import numpy
began = time.perf_counter()
import ddpm_deploy
print(time.perf_counter() - began)
"""


def test_import_time(benchmark: Any, bench: Bench) -> None:
    """Each round is a fresh interpreter with compiled files, as installed; only the time beyond numpy's own counts."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    beyond_numpy_ms = []

    def import_once() -> None:
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        beyond_numpy_ms.append(float(done.stdout) * 1e3)

    benchmark.pedantic(import_once, rounds=15, warmup_rounds=2)
    median = statistics.median(beyond_numpy_ms)
    benchmark.extra_info["beyond_numpy_ms"] = round(median, 1)
    bench.note("overhead", what="import ddpm_deploy, beyond numpy", value=median, unit="ms", target=IMPORT_MS)
    assert median <= BROKEN * IMPORT_MS
