"""The sampler's own cost: one step at batch 1, 3x32x32, on a trivial denoiser, and the import of the package.

`pytest benchmarks/bench_overhead.py` prints microseconds per run of 100 steps; the extra column is per step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Manifest, default_bundle, read_bundle
from ddpm_deploy.schedule import NoiseSchedule

SHAPE = (3, 32, 32)
STEPS = 100
DETERMINISTIC_US, STOCHASTIC_US, IMPORT_MS, STEP_PART = 50, 150, 60, 0.01
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

    def run(self, feeds):
        return {"prediction": feeds["x"]}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    digits = read_bundle(default_bundle()).manifest
    members = {**vars(digits), "sample_shape": SHAPE, "schedule": NoiseSchedule.linear(1000)}
    return Sampler(Trivial(), Manifest(**members))  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
def test_step_overhead(benchmark, sampler: Sampler, solver: str) -> None:
    plan = sampler.plan(solver, STEPS)
    expected = plan.run(lambda x, t: x, sampler.sample(1, plan=sampler.plan("ddim", 1)), np.zeros(1))
    assert np.isfinite(expected).all()
    benchmark.pedantic(lambda: sampler.sample(1, plan=plan, seed=0), rounds=30, warmup_rounds=3)
    per_step_us = benchmark.stats.stats.median / plan.nfe * 1e6
    benchmark.extra_info["per_step_us"] = round(per_step_us, 1)
    print(f"\n{solver}: median {per_step_us:.1f} us a step, target {SOLVERS[solver]} us")
    assert per_step_us <= SOLVERS[solver]


@pytest.mark.parametrize("solver", ["unipc", "ddpm"])
def test_overhead_beside_the_cifar10_network(benchmark, sampler: Sampler, solver: str) -> None:
    """The same cost as a part of one step of the DDPM paper's U-Net, random weights, eager torch, batch 1."""
    torch = pytest.importorskip("torch")
    from ddpm_deploy.model import UNet, UNetConfig

    network = UNet(UNetConfig.cifar10()).eval()
    x, t = torch.zeros(1, *SHAPE), torch.zeros(1)
    plan = sampler.plan(solver, STEPS)
    with torch.inference_mode():
        benchmark.pedantic(lambda: network(x, t), rounds=15, warmup_rounds=3)
    own = []
    for _ in range(15):
        began = time.perf_counter()
        sampler.sample(1, plan=plan, seed=0)
        own.append((time.perf_counter() - began) / plan.nfe)
    part = statistics.median(own) / benchmark.stats.stats.median
    benchmark.extra_info["part_of_a_step"] = round(part, 5)
    print(f"\n{solver}: {part:.2%} of a step of the CIFAR-10 U-Net, target {STEP_PART:.0%}")
    assert part <= STEP_PART


CODE = """
import sys, time
import numpy
began = time.perf_counter()
import ddpm_deploy
print(time.perf_counter() - began)
"""


def test_import_time(benchmark) -> None:
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
    print(f"\nimport ddpm_deploy: median {median:.1f} ms beyond numpy, target {IMPORT_MS} ms")
    assert median <= IMPORT_MS
